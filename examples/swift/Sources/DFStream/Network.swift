/// What the network gives for one frame.
public struct NetworkResults: Equatable, Sendable {
    /// Gain of each band.
    public var mask: [Float]
    /// Taps, channel by channel: real parts of tap 0, its imaginary parts, those of tap 1, and so on; oldest first.
    public var coefs: [Float]
    /// Local SNR in dB.
    public var lsnr: Float
}

/// A network that advances one stream frame by frame and remembers what it has to.
public protocol Network: AnyObject {
    func advance(_ features: FeatureFrame, into results: inout NetworkResults) throws

    /// Forgets the past: zeros in every state.
    func reset() throws

    /// All that it remembers, by name.
    func snapshot() throws -> [String: [Float]]

    /// Continues from a snapshot.
    func restore(_ states: [String: [Float]]) throws
}
