import Foundation

/// What stands beside a package, `X.json`: the contract, and what a caller has to carry from frame to frame.
public struct Description: Decodable, Sendable {
    public let format: Int
    /// "explicit" (states are inputs and outputs) or "coreml" (they live inside the package).
    public let state: String
    public let blockFrames: Int
    public let states: [State]
    public let contract: Contract

    public struct State: Decodable, Sendable {
        public let name: String
        /// What the next value is called; nil where states live inside the package.
        public let output: String?
    }

    /// The layout of `X.json` that this code was written for.
    static let knownFormat = 1

    public init(contentsOf url: URL) throws {
        self = try JSONDecoder().decode(Description.self, from: Data(contentsOf: url))
        guard format == Self.knownFormat, contract.format == Self.knownFormat else {
            throw DFStreamError.unsupported("\(url.lastPathComponent) is of format \(format)")
        }
        guard blockFrames == 1 else {
            throw DFStreamError.unsupported("\(url.lastPathComponent): \(blockFrames) frames a call")
        }
    }

    enum CodingKeys: String, CodingKey {
        case format, state, states, contract
        case blockFrames = "block_frames"
    }
}

/// The numbers of the signal processing around the network. No other file of this package holds one.
///
/// Ages count frames back from the newest input frame, whose age is 0.
public struct Contract: Decodable, Sendable {
    public let format: Int
    public let sampleRate: Int
    public let fftSize: Int
    public let hopSize: Int
    public let bins: Int
    public let delaySamples: Int
    let input: Input
    let window: Window
    let analysis: Analysis
    let features: FeatureNumbers
    let network: NetworkNumbers
    let mask: Mask
    let deepFilter: DeepFilter
    let postFilter: PostFilter
    let attenuationLimit: AttenuationLimit

    enum CodingKeys: String, CodingKey {
        case format, bins, input, window, analysis, features, network, mask
        case sampleRate = "sample_rate"
        case fftSize = "fft_size"
        case hopSize = "hop_size"
        case delaySamples = "delay_samples"
        case deepFilter = "deep_filter"
        case postFilter = "post_filter"
        case attenuationLimit = "attenuation_limit"
    }

    struct Input: Decodable { let largest: Float }
    struct Window: Decodable { let values: [Float] }
    struct Analysis: Decodable { let scale: Double }
    struct Mask: Decodable { let widths: [Int] }

    struct FeatureNumbers: Decodable {
        let alpha: Float
        let erb: ERB
        let spec: Spec

        struct ERB: Decodable {
            let initial: [Float]
            let powerFloor: Float
            let rangeDB: Float

            enum CodingKeys: String, CodingKey {
                case initial
                case powerFloor = "power_floor"
                case rangeDB = "range_db"
            }
        }

        struct Spec: Decodable {
            let initial: [Float]
            let leastMean: Float

            enum CodingKeys: String, CodingKey {
                case initial
                case leastMean = "least_mean"
            }
        }
    }

    struct NetworkNumbers: Decodable {
        let inputs: [String: [Int]]
        let frameAge: Int

        enum CodingKeys: String, CodingKey {
            case inputs
            case frameAge = "frame_age"
        }
    }

    struct DeepFilter: Decodable {
        let bins: Int
        let order: Int
        let reads: Source
        let outputAge: Int
        let tapAges: [Int]

        /// Which spectrum the taps are applied to: DeepFilterNet3 reads the noisy one, 2 the masked one.
        enum Source: String, Decodable { case noisy, masked }

        enum CodingKeys: String, CodingKey {
            case bins, order, reads
            case outputAge = "output_age"
            case tapAges = "tap_ages"
        }
    }

    struct PostFilter: Decodable {
        let bins: Int
        let leastGain: Float

        enum CodingKeys: String, CodingKey {
            case bins
            case leastGain = "least_gain"
        }
    }

    struct AttenuationLimit: Decodable {
        let noneFromDB: Float

        enum CodingKeys: String, CodingKey { case noneFromDB = "none_from_db" }
    }
}

public enum DFStreamError: Error, CustomStringConvertible {
    case unsupported(String)
    case missing(String)

    public var description: String {
        switch self {
        case .unsupported(let what): return "not supported: \(what)"
        case .missing(let what): return "missing: \(what)"
        }
    }
}
