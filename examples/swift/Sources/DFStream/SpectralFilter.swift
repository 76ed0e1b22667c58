import Foundation

/// Applies what the network gave to the spectra, in step with the lookaheads.
struct SpectralFilter {
    private let contract: Contract
    private let bandOfBin: [Int]
    private let ones: [Float]
    private var re: Ring
    private var im: Ring
    private var gains: Ring
    private var taps: Ring

    init(_ contract: Contract) {
        self.contract = contract
        bandOfBin = contract.mask.widths.enumerated().flatMap { band, width in
            [Int](repeating: band, count: width)
        }
        ones = [Float](repeating: 1, count: contract.mask.widths.count)
        let deep = contract.deepFilter
        let oldest = max(deep.outputAge, deep.tapAges.max() ?? 0)
        let results = oldest - contract.network.frameAge + 1
        re = Ring(frames: oldest + 1, of: contract.bins)
        im = re
        gains = Ring(frames: results, of: contract.mask.widths.count)
        taps = Ring(frames: results, of: 2 * deep.order * deep.bins)
    }

    mutating func process(
        _ spectrum: Spectrum, _ results: NetworkResults, _ settings: Enhancer.Settings,
        into enhanced: inout Spectrum
    ) {
        re.push(spectrum.re)
        im.push(spectrum.im)
        gains.push(results.mask)
        taps.push(results.coefs)
        mask(into: &enhanced)
        deepFilter(into: &enhanced)
        if settings.postFilter > 0 { sharpen(&enhanced, settings.postFilter) }
        if let limit = settings.attenuationLimit, limit < contract.attenuationLimit.noneFromDB {
            keepNoise(&enhanced, limit)
        }
    }

    /// Gains of a frame came `frameAge` frames after it.
    private func gains(ofAge age: Int) -> [Float] { gains[age - contract.network.frameAge] }

    private func mask(into enhanced: inout Spectrum) {
        let age = contract.deepFilter.outputAge
        let (re, im, gains) = (re[age], im[age], gains(ofAge: age))
        for k in 0..<contract.bins {
            enhanced.re[k] = re[k] * gains[bandOfBin[k]]
            enhanced.im[k] = im[k] * gains[bandOfBin[k]]
        }
    }

    /// `Y[k] = sum over taps of C[tap, k] S[k] at the tap's age`, a plain complex product.
    private func deepFilter(into enhanced: inout Spectrum) {
        let deep = contract.deepFilter
        let coefs = taps[deep.outputAge - contract.network.frameAge]
        for k in 0..<deep.bins { (enhanced.re[k], enhanced.im[k]) = (0, 0) }
        for (tap, age) in deep.tapAges.enumerated() {
            let (re, im) = (re[age], im[age])
            let gains = deep.reads == .masked ? gains(ofAge: age) : ones
            let (cRe, cIm) = (2 * tap * deep.bins, (2 * tap + 1) * deep.bins)
            for k in 0..<deep.bins {
                let gain = gains[bandOfBin[k]]
                let (sRe, sIm) = (re[k] * gain, im[k] * gain)
                enhanced.re[k] += coefs[cRe + k] * sRe - coefs[cIm + k] * sIm
                enhanced.im[k] += coefs[cRe + k] * sIm + coefs[cIm + k] * sRe
            }
        }
    }

    private func sharpen(_ enhanced: inout Spectrum, _ beta: Float) {
        let (re, im) = (re[contract.deepFilter.outputAge], im[contract.deepFilter.outputAge])
        let least = contract.postFilter.leastGain
        for k in 0..<contract.postFilter.bins {
            let ratio = hypot(enhanced.re[k], enhanced.im[k]) / (hypot(re[k], im[k]) + least)
            let sine = sin(Float.pi / 2 * min(max(ratio, least), 1))
            let factor = (1 + beta) / (1 + beta / (sine * sine))
            enhanced.re[k] *= factor
            enhanced.im[k] *= factor
        }
    }

    private func keepNoise(_ enhanced: inout Spectrum, _ limitDB: Float) {
        let (re, im) = (re[contract.deepFilter.outputAge], im[contract.deepFilter.outputAge])
        let share = pow(10, -abs(limitDB) / 20)
        for k in 0..<contract.bins {
            enhanced.re[k] = enhanced.re[k] * (1 - share) + re[k] * share
            enhanced.im[k] = enhanced.im[k] * (1 - share) + im[k] * share
        }
    }
}
