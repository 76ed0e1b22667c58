// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "DFStream",
    platforms: [.macOS(.v13), .iOS(.v16)],
    products: [.library(name: "DFStream", targets: ["DFStream"])],
    targets: [
        .target(name: "DFStream"),
        .executableTarget(name: "dfstream-demo", dependencies: ["DFStream"]),
        .testTarget(name: "DFStreamTests", dependencies: ["DFStream"], resources: [.copy("Golden")]),
    ]
)
