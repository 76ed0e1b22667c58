import XCTest

@testable import DFStream

/// Each stage from the golden one before it, so that a fault is found where it is. No Core ML.
final class StageTests: XCTestCase {
    func testTransformIsThePlainSum() throws {
        let size = 960
        var transform = try RealTransform(size: size)
        let x = (0..<size).map { sin(0.37 * Double($0)) + cos(1.1 * Double($0 * $0 % 97)) }
        var spectrum = Spectrum(bins: size / 2 + 1)
        var back = [Double](repeating: 0, count: size)
        transform.forward(x, scale: 1, into: &spectrum)
        for k in [0, 1, 7, 240, 479, 480] {
            let angle = 2 * Double.pi * Double(k) / Double(size)
            let re = x.enumerated().reduce(0) { $0 + $1.element * cos(angle * Double($1.offset)) }
            let im = x.enumerated().reduce(0) { $0 - $1.element * sin(angle * Double($1.offset)) }
            XCTAssertEqual(Double(spectrum.re[k]), re, accuracy: 1e-3)
            XCTAssertEqual(Double(spectrum.im[k]), im, accuracy: 1e-3)
        }
        transform.inverse(spectrum, into: &back)
        for i in x.indices { XCTAssertEqual(back[i] / Double(size), x[i], accuracy: 1e-5) }
        spectrum.im[0] = 3
        spectrum.im[size / 2] = -5
        var again = back
        transform.inverse(spectrum, into: &again)
        XCTAssertEqual(again, back, "imaginary parts of the first and the last bin do not count")
    }

    func testAnalysis() throws {
        for (name, golden) in try Golden.all() {
            var spectra = try Spectra(golden.contract)
            var spectrum = Spectrum(bins: golden.contract.bins)
            for t in 0..<golden.frames {
                spectra.analyse(golden.frame("audio_in", t), into: &spectrum)
                assertClose(spectrum.re, golden.spectrum("spectrum", t).re, 1e-6, "\(name), frame \(t)")
                assertClose(spectrum.im, golden.spectrum("spectrum", t).im, 1e-6, "\(name), frame \(t)")
            }
        }
    }

    func testFeatures() throws {
        for (name, golden) in try Golden.all() {
            var features = Features(golden.contract)
            var frame = FeatureFrame(erb: golden.frame("feat_erb", 0), spec: golden.frame("feat_spec", 0))
            for t in 0..<golden.frames {
                features.process(golden.spectrum("spectrum", t), into: &frame)
                assertClose(frame.erb, golden.frame("feat_erb", t), 1e-5, "\(name), frame \(t)")
                assertClose(frame.spec, golden.frame("feat_spec", t), 1e-5, "\(name), frame \(t)")
            }
        }
    }

    func testFilter() throws {
        for (name, golden) in try Golden.all() {
            var filter = SpectralFilter(golden.contract)
            var enhanced = Spectrum(bins: golden.contract.bins)
            for t in 0..<golden.frames {
                filter.process(golden.spectrum("spectrum", t), golden.results(t), .init(), into: &enhanced)
                assertClose(enhanced.re, golden.spectrum("enhanced", t).re, 1e-6, "\(name), frame \(t)")
                assertClose(enhanced.im, golden.spectrum("enhanced", t).im, 1e-6, "\(name), frame \(t)")
            }
        }
    }

    func testSynthesis() throws {
        for (name, golden) in try Golden.all() {
            var spectra = try Spectra(golden.contract)
            for t in 0..<golden.frames {
                var hop: [Float] = []
                spectra.synthesise(golden.spectrum("enhanced", t), into: &hop)
                assertClose(hop, golden.frame("audio_out", t), 1e-6, "\(name), frame \(t)")
            }
        }
    }
}

/// The whole way, with the golden results in the place of the network.
final class EnhancerTests: XCTestCase {
    private func pieces(of x: [Float], _ sizes: [Int]) -> [[Float]] {
        var (start, turn, found) = (0, 0, [[Float]]())
        while start < x.count {
            let end = min(start + sizes[turn % sizes.count], x.count)
            found.append(Array(x[start..<end]))
            (start, turn) = (end, turn + 1)
        }
        return found
    }

    func testAudioInAnyCut() throws {
        for (name, golden) in try Golden.all() {
            let enhancer = try Enhancer(contract: golden.contract, network: Replay(golden))
            let whole = try enhancer.process(golden.audio("audio_in"))
            assertClose(whole, golden.audio("audio_out"), 1e-6, name)
            XCTAssertGreaterThan(whole.map { abs($0) }.max()!, 1e-3, name)
            XCTAssertEqual(enhancer.lsnr, golden.results(golden.frames - 1).lsnr)
            for sizes in [[1], [1, 480, 37, 1000, 479], [481]] {
                try enhancer.reset()
                let cut = try pieces(of: golden.audio("audio_in"), sizes).flatMap { try enhancer.process($0) }
                XCTAssertEqual(cut, whole, name)
            }
        }
    }

    func testSettings() throws {
        for (name, golden) in try Golden.all() {
            let enhancer = try Enhancer(contract: golden.contract, network: Replay(golden))
            enhancer.settings = golden.settings
            let audio = try enhancer.process(golden.audio("audio_in"))
            assertClose(audio, golden.audio("audio_out_limited"), 1e-6, name)
        }
    }

    func testSnapshotContinuesBitForBit() throws {
        for (name, golden) in try Golden.all() {
            let (first, second) = (Replay(golden), Replay(golden))
            let enhancer = try Enhancer(contract: golden.contract, network: first)
            let x = golden.audio("audio_in")
            let half = x.count / 2 + 100
            _ = try enhancer.process(Array(x[..<half]))
            let snapshot = try enhancer.snapshot()
            let want = try enhancer.process(Array(x[half...]))
            let other = try Enhancer(contract: golden.contract, network: second)
            try other.restore(snapshot)
            XCTAssertEqual(try other.process(Array(x[half...])), want, name)
            try enhancer.restore(snapshot)
            XCTAssertEqual(try enhancer.process(Array(x[half...])), want, name)
        }
    }

    func testFlushGivesTheDelayAfterwards() throws {
        for (name, golden) in try Golden.all() {
            let enhancer = try Enhancer(contract: golden.contract, network: Passing(golden.contract))
            let x = (0..<golden.contract.hopSize * 7 + 13).map { sin(0.05 * Float($0)) }
            let y = try enhancer.process(x) + enhancer.flush()
            XCTAssertEqual(y.count, x.count + enhancer.delaySamples, name)
            assertClose(Array(y[enhancer.delaySamples...]), x, 1e-5, name)
        }
    }

    func testWhatIsNoAudioBecomesZero() throws {
        for (name, golden) in try Golden.all() {
            let enhancer = try Enhancer(contract: golden.contract, network: Passing(golden.contract))
            var x = (0..<golden.contract.hopSize * 9).map { sin(0.05 * Float($0)) }
            let bad = [(11, Float.nan), (500, .infinity), (900, -.infinity), (1000, 1e6)]
            for (i, value) in bad where i < x.count { x[i] = value }
            let got = try enhancer.process(x)
            for (i, _) in bad where i < x.count { x[i] = 0 }
            try enhancer.reset()
            XCTAssertEqual(got, try enhancer.process(x), name)
        }
    }
}

/// Leaves everything as it is: gains of one, and one tap that takes the frame of the output.
private final class Passing: Network {
    private let results: NetworkResults

    init(_ contract: Contract) {
        let deep = contract.deepFilter
        let tap = deep.tapAges.firstIndex(of: deep.outputAge)!
        var coefs = [Float](repeating: 0, count: 2 * deep.order * deep.bins)
        for k in 0..<deep.bins { coefs[2 * tap * deep.bins + k] = 1 }
        let mask = [Float](repeating: 1, count: contract.mask.widths.count)
        results = NetworkResults(mask: mask, coefs: coefs, lsnr: 0)
    }

    func advance(_ features: FeatureFrame, into results: inout NetworkResults) throws { results = self.results }
    func reset() throws {}
    func snapshot() throws -> [String: [Float]] { [:] }
    func restore(_ states: [String: [Float]]) throws {}
}
