import Foundation
import XCTest

@testable import DFStream

/// Golden vectors of every stage, as `dfstream.coreml.contract.golden_vectors` writes them.
struct Golden {
    let contract: Contract
    let frames: Int
    let settings: Enhancer.Settings
    private let stages: [String: Stage]

    private struct Stage: Decodable {
        let shape: [Int]
        let data: Data

        /// Frame t, its elements in C order.
        func frame(_ t: Int) -> [Float] {
            let count = shape.dropFirst().reduce(1, *)
            return data.withUnsafeBytes { bytes in
                (t * count..<(t + 1) * count).map { i in
                    let bits = bytes.loadUnaligned(fromByteOffset: 4 * i, as: UInt32.self)
                    return Float(bitPattern: UInt32(littleEndian: bits))
                }
            }
        }
    }

    private struct File: Decodable {
        let golden: Vectors

        struct Vectors: Decodable {
            let frames: Int
            let attenuationLimit: Float
            let postFilter: Float
            let stages: [String: Stage]

            enum CodingKeys: String, CodingKey {
                case frames, stages
                case attenuationLimit = "atten_lim_db"
                case postFilter = "post_filter"
            }
        }
    }

    init(contentsOf url: URL) throws {
        contract = try Description(contentsOf: url).contract
        let vectors = try JSONDecoder().decode(File.self, from: Data(contentsOf: url)).golden
        frames = vectors.frames
        stages = vectors.stages
        settings = Enhancer.Settings(attenuationLimit: vectors.attenuationLimit, postFilter: vectors.postFilter)
    }

    func frame(_ stage: String, _ t: Int) -> [Float] { stages[stage]!.frame(t) }

    func spectrum(_ stage: String, _ t: Int) -> Spectrum {
        let values = frame(stage, t)
        var spectrum = Spectrum(bins: values.count / 2)
        spectrum.re = Array(values[..<spectrum.re.count])
        spectrum.im = Array(values[spectrum.re.count...])
        return spectrum
    }

    func results(_ t: Int) -> NetworkResults {
        NetworkResults(mask: frame("mask", t), coefs: frame("coefs", t), lsnr: frame("lsnr", t)[0])
    }

    func audio(_ stage: String) -> [Float] { (0..<frames).flatMap { frame(stage, $0) } }

    /// Every file in the folder `Golden`, and those that `DFSTREAM_GOLDEN` names, separated by colons.
    static func all() throws -> [(name: String, golden: Golden)] {
        let folder = try XCTUnwrap(Bundle.module.url(forResource: "Golden", withExtension: nil))
        let named = ProcessInfo.processInfo.environment["DFSTREAM_GOLDEN"]?.split(separator: ":") ?? []
        let files =
            try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
            + named.map { URL(fileURLWithPath: String($0)) }
        XCTAssertFalse(files.isEmpty)
        return try files.map { ($0.lastPathComponent, try Golden(contentsOf: $0)) }
    }
}

/// Gives the golden results, whatever it is asked; its state is how many frames it has given.
final class Replay: Network {
    private let golden: Golden
    private var given = 0

    init(_ golden: Golden) { self.golden = golden }

    func advance(_ features: FeatureFrame, into results: inout NetworkResults) throws {
        results = golden.results(given)
        given += 1
    }

    func reset() throws { given = 0 }
    func snapshot() throws -> [String: [Float]] { ["given": [Float(given)]] }
    func restore(_ states: [String: [Float]]) throws { given = Int(states["given"]![0]) }
}

/// Fails unless the largest difference is at most `limit` of the largest value, or of 1.
func assertClose(
    _ got: [Float], _ want: [Float], _ limit: Float, _ what: String,
    file: StaticString = #filePath, line: UInt = #line
) {
    XCTAssertEqual(got.count, want.count, what, file: file, line: line)
    let largest = max(1, want.map { abs($0) }.max() ?? 0)
    let difference = zip(got, want).map { abs($0 - $1) }.max() ?? 0
    XCTAssert(difference <= limit * largest, "\(what): \(difference)", file: file, line: line)
}
