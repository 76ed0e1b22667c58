import Foundation

#if canImport(CoreML) && canImport(AVFoundation)
do {
    try await Demo(Options(Array(CommandLine.arguments.dropFirst()))).run()
} catch let error as Options.UsageError {
    FileHandle.standardError.write(Data("\(error.message)\n\n\(Options.usage)\n".utf8))
    exit(2)
} catch {
    FileHandle.standardError.write(Data("error: \(error)\n".utf8))
    exit(1)
}
#else
FileHandle.standardError.write(Data("dfstream-demo needs Core ML; the tests of the package do not.\n".utf8))
exit(2)
#endif
