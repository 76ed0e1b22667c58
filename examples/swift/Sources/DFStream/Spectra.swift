/// Analysis and synthesis, one hop at a time.
struct Spectra {
    private var transform: RealTransform
    private let window: [Float]
    private let scale: Double
    private let hopSize: Int
    private var recent: [Float]
    private var pending: [Float]
    private var frame: [Double]

    init(_ contract: Contract) throws {
        transform = try RealTransform(size: contract.fftSize)
        window = contract.window.values
        scale = contract.analysis.scale
        hopSize = contract.hopSize
        recent = [Float](repeating: 0, count: contract.fftSize)
        pending = recent
        frame = [Double](repeating: 0, count: contract.fftSize)
    }

    mutating func analyse(_ hop: [Float], into spectrum: inout Spectrum) {
        let overlap = recent.count - hopSize
        for i in 0..<overlap { recent[i] = recent[i + hopSize] }
        for i in 0..<hopSize { recent[overlap + i] = hop[i] }
        for i in recent.indices { frame[i] = Double(recent[i] * window[i]) }
        transform.forward(frame, scale: scale, into: &spectrum)
    }

    /// Appends one hop.
    mutating func synthesise(_ spectrum: Spectrum, into output: inout [Float]) {
        transform.inverse(spectrum, into: &frame)
        for i in frame.indices { pending[i] += Float(frame[i]) * window[i] }
        output.append(contentsOf: pending[..<hopSize])
        let overlap = pending.count - hopSize
        for i in 0..<overlap { pending[i] = pending[i + hopSize] }
        for i in overlap..<pending.count { pending[i] = 0 }
    }
}
