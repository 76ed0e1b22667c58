import Foundation

/// What the network reads for one frame.
public struct FeatureFrame: Equatable, Sendable {
    /// Band levels, in ranges above their running mean.
    public var erb: [Float]
    /// Lowest bins over the root of their running mean magnitude: real parts, then imaginary ones.
    public var spec: [Float]
}

/// Computes features and owns their running means.
struct Features {
    private let alpha: Float
    private let powerFloor: Float
    private let rangeDB: Float
    private let leastMean: Float
    private let widths: [Int]
    private var levelMeans: [Float]
    private var magnitudeMeans: [Float]

    init(_ contract: Contract) {
        alpha = contract.features.alpha
        powerFloor = contract.features.erb.powerFloor
        rangeDB = contract.features.erb.rangeDB
        leastMean = contract.features.spec.leastMean
        widths = contract.mask.widths
        levelMeans = contract.features.erb.initial
        magnitudeMeans = contract.features.spec.initial
    }

    mutating func process(_ spectrum: Spectrum, into frame: inout FeatureFrame) {
        erb(spectrum, into: &frame.erb)
        spec(spectrum, into: &frame.spec)
    }

    private mutating func erb(_ spectrum: Spectrum, into values: inout [Float]) {
        var first = 0
        for (band, width) in widths.enumerated() {
            var power: Float = 0
            for k in first..<first + width {
                power += spectrum.re[k] * spectrum.re[k] + spectrum.im[k] * spectrum.im[k]
            }
            let level = 10 * log10(power / Float(width) + powerFloor)
            levelMeans[band] = level * (1 - alpha) + levelMeans[band] * alpha
            values[band] = (level - levelMeans[band]) / rangeDB
            first += width
        }
    }

    private mutating func spec(_ spectrum: Spectrum, into values: inout [Float]) {
        let count = magnitudeMeans.count
        for k in 0..<count {
            let (re, im) = (spectrum.re[k], spectrum.im[k])
            let magnitude = (re * re + im * im).squareRoot()
            magnitudeMeans[k] = max(magnitude * (1 - alpha) + magnitudeMeans[k] * alpha, leastMean)
            let root = magnitudeMeans[k].squareRoot()
            values[k] = re / root
            values[count + k] = im / root
        }
    }
}
