/// Enhances speech as it arrives, one channel at the model's sample rate.
///
/// An instance serves one stream and one thread. Predictions allocate: in an audio app, call it from a worker
/// thread that a lock-free ring joins to the render callback, never from the callback itself.
public final class Enhancer {
    public let contract: Contract
    public var settings = Settings()
    private let network: any Network
    private var path: SignalPath

    public init(contract: Contract, network: any Network) throws {
        self.contract = contract
        self.network = network
        path = try SignalPath(contract)
    }

    /// Samples by which the output lags the input.
    public var delaySamples: Int { contract.delaySamples }

    /// Local SNR of the newest frame in dB.
    public var lsnr: Float { path.lsnr }

    /// Takes any number of samples and returns those that became ready: whole hops, maybe none.
    public func process(_ samples: [Float]) throws -> [Float] {
        try path.process(samples, through: network, settings)
    }

    /// Ends the stream: returns what is still inside, so that the joined output is `delaySamples` longer than the
    /// input. Call `reset()` to begin a new one.
    public func flush() throws -> [Float] {
        let (waiting, hop) = (path.waiting, contract.hopSize)
        let hops = (waiting + hop - 1) / hop + (delaySamples + hop - 1) / hop
        let tail = try process([Float](repeating: 0, count: hops * hop - waiting))
        return Array(tail.prefix(waiting + delaySamples))
    }

    /// Forgets everything; settings stay as they are.
    public func reset() throws {
        path = try SignalPath(contract)
        try network.reset()
    }

    /// What a listener may change while a stream runs.
    public struct Settings: Sendable {
        /// Largest attenuation of the noise in dB; nil is no limit, 0 gives the noisy signal, delayed.
        public var attenuationLimit: Float?
        /// Strength (beta) of the post-filter: 0 is off, 0.02 usual.
        public var postFilter: Float

        public init(attenuationLimit: Float? = nil, postFilter: Float = 0) {
            (self.attenuationLimit, self.postFilter) = (attenuationLimit, postFilter)
        }
    }

    /// All that the stream remembers. `restore` continues from it, in this or another enhancer of the same package.
    public struct Snapshot: Sendable {
        let path: SignalPath
        let network: [String: [Float]]
    }

    public func snapshot() throws -> Snapshot { Snapshot(path: path, network: try network.snapshot()) }

    public func restore(_ snapshot: Snapshot) throws {
        try network.restore(snapshot.network)
        path = snapshot.path
    }
}

/// The signal's way around the network, and all memory of it: a value, so that a copy is a snapshot.
struct SignalPath: Sendable {
    private let largest: Float
    private var spectra: Spectra
    private var features: Features
    private var filter: SpectralFilter
    private var hop: [Float]
    private(set) var waiting = 0
    private var noisy: Spectrum
    private var enhanced: Spectrum
    private var frame: FeatureFrame
    private var results: NetworkResults

    var lsnr: Float { results.lsnr }

    init(_ contract: Contract) throws {
        func zeros(_ count: Int) -> [Float] { [Float](repeating: 0, count: count) }
        let deep = contract.deepFilter
        largest = contract.input.largest
        spectra = try Spectra(contract)
        features = Features(contract)
        filter = SpectralFilter(contract)
        hop = zeros(contract.hopSize)
        noisy = Spectrum(bins: contract.bins)
        enhanced = noisy
        frame = FeatureFrame(erb: zeros(contract.mask.widths.count), spec: zeros(2 * deep.bins))
        results = NetworkResults(
            mask: zeros(contract.mask.widths.count), coefs: zeros(2 * deep.order * deep.bins), lsnr: .nan)
    }

    mutating func process(
        _ samples: [Float], through network: any Network, _ settings: Enhancer.Settings
    ) throws -> [Float] {
        var output: [Float] = []
        output.reserveCapacity(samples.count + hop.count)
        for sample in samples {
            // one sample that is not a number would stay in the recurrent states for ever
            hop[waiting] = abs(sample) < largest ? sample : 0
            waiting += 1
            if waiting == hop.count {
                waiting = 0
                try enhanceHop(through: network, settings, into: &output)
            }
        }
        return output
    }

    private mutating func enhanceHop(
        through network: any Network, _ settings: Enhancer.Settings, into output: inout [Float]
    ) throws {
        spectra.analyse(hop, into: &noisy)
        features.process(noisy, into: &frame)
        try network.advance(frame, into: &results)
        filter.process(noisy, results, settings, into: &enhanced)
        spectra.synthesise(enhanced, into: &output)
    }
}
