#if canImport(Accelerate)
import Accelerate
#else
import Foundation
#endif

/// A spectrum, real and imaginary parts apart; bins from 0 Hz to half the sample rate.
public struct Spectrum: Equatable, Sendable {
    public var re: [Float]
    public var im: [Float]

    public init(bins: Int) {
        re = [Float](repeating: 0, count: bins)
        im = [Float](repeating: 0, count: bins)
    }
}

/// The discrete Fourier transform of real frames, in double precision: a loud bin must not leak rounding errors
/// into quiet ones, whose logarithm the network looks at.
struct RealTransform {
    let size: Int
    private var even: [Double]
    private var odd: [Double]
    private var re: [Double]
    private var im: [Double]
    private let setups: Setups

    /// Fails where there is no transform of this size: with vDSP it has to be f * 2^n, f in 1, 3, 5, 15, n >= 4.
    init(size: Int) throws {
        self.size = size
        setups = try Setups(size: size)
        even = [Double](repeating: 0, count: size / 2)
        odd = even
        re = even
        im = even
    }

    /// `X[k] = scale * sum over i of x[i] exp(-2 pi j i k / size)`, bins up to half.
    mutating func forward(_ frame: [Double], scale: Double, into spectrum: inout Spectrum) {
        for i in even.indices {
            even[i] = frame[2 * i]
            odd[i] = frame[2 * i + 1]
        }
        setups.forward(even, odd, &re, &im)
        let half = scale / 2  // the packed transform is twice the sum
        for k in re.indices {
            spectrum.re[k] = Float(half * re[k])
            spectrum.im[k] = Float(half * im[k])
        }
        spectrum.im[0] = 0
        spectrum.re[size / 2] = Float(half * im[0])  // the last bin travels where the first has no imaginary part
        spectrum.im[size / 2] = 0
    }

    /// `x[i] = sum over all size bins k of X[k] exp(2 pi j i k / size)`, not divided by the size. Imaginary parts
    /// of the first and the last bin do not count.
    mutating func inverse(_ spectrum: Spectrum, into frame: inout [Double]) {
        for k in re.indices {
            re[k] = Double(spectrum.re[k])
            im[k] = Double(spectrum.im[k])
        }
        im[0] = Double(spectrum.re[size / 2])
        setups.inverse(re, im, &even, &odd)
        for i in even.indices {
            frame[2 * i] = even[i]
            frame[2 * i + 1] = odd[i]
        }
    }
}

#if canImport(Accelerate)

/// Immutable, and so shared between copies: vDSP allows a setup to be used by several threads.
private final class Setups: @unchecked Sendable {
    private let ahead: OpaquePointer
    private let back: OpaquePointer

    init(size: Int) throws {
        guard let ahead = vDSP_DFT_zrop_CreateSetupD(nil, vDSP_Length(size), .FORWARD) else {
            throw DFStreamError.unsupported("a transform of \(size) samples")
        }
        guard let back = vDSP_DFT_zrop_CreateSetupD(ahead, vDSP_Length(size), .INVERSE) else {
            vDSP_DFT_DestroySetupD(ahead)
            throw DFStreamError.unsupported("a transform of \(size) samples")
        }
        (self.ahead, self.back) = (ahead, back)
    }

    deinit {
        vDSP_DFT_DestroySetupD(back)
        vDSP_DFT_DestroySetupD(ahead)
    }

    func forward(_ even: [Double], _ odd: [Double], _ re: inout [Double], _ im: inout [Double]) {
        vDSP_DFT_ExecuteD(ahead, even, odd, &re, &im)
    }

    func inverse(_ re: [Double], _ im: [Double], _ even: inout [Double], _ odd: inout [Double]) {
        vDSP_DFT_ExecuteD(back, re, im, &even, &odd)
    }
}

#else

/// The same packing by plain sums, for platforms without Accelerate: to test there, not to run in real time.
private final class Setups: Sendable {
    private let cosines: [Double]
    private let sines: [Double]

    init(size: Int) throws {
        let angles = (0..<size).map { 2 * Double.pi * Double($0) / Double(size) }
        cosines = angles.map { cos($0) }
        sines = angles.map { sin($0) }
    }

    func forward(_ even: [Double], _ odd: [Double], _ re: inout [Double], _ im: inout [Double]) {
        for k in 0...even.count {
            var (sumRe, sumIm, turn) = (0.0, 0.0, 0)
            for i in cosines.indices {
                let sample = i % 2 == 0 ? even[i / 2] : odd[i / 2]
                sumRe += sample * cosines[turn]
                sumIm -= sample * sines[turn]
                turn = (turn + k) % cosines.count
            }
            if k < even.count {
                re[k] = 2 * sumRe
                im[k] = 2 * sumIm
            } else {
                im[0] = 2 * sumRe
            }
        }
    }

    func inverse(_ re: [Double], _ im: [Double], _ even: inout [Double], _ odd: inout [Double]) {
        for i in cosines.indices {
            var (sum, turn) = (re[0] + (i % 2 == 0 ? im[0] : -im[0]), i)
            for k in 1..<re.count {
                sum += 2 * (re[k] * cosines[turn] - im[k] * sines[turn])
                turn = (turn + i) % cosines.count
            }
            if i % 2 == 0 { even[i / 2] = sum } else { odd[i / 2] = sum }
        }
    }
}

#endif
