#if canImport(CoreML) && canImport(AVFoundation)
import CoreML
import DFStream
import Foundation

struct Failure: Error, CustomStringConvertible { let description: String }

/// What the options ask for, in their order.
struct Demo {
    let options: Options

    init(_ options: Options) { self.options = options }

    func run() async throws {
        let package = try await Package(
            contentsOf: URL(fileURLWithPath: options.package), computeUnits: computeUnits)
        if let path = options.computePlan { try await writePlan(of: package, to: path) }
        if let input = options.input, let output = options.output {
            try enhance(package, URL(fileURLWithPath: input), URL(fileURLWithPath: output))
        }
        if let frames = options.soakFrames { try soak(package, frames) }
    }

    private var computeUnits: MLComputeUnits {
        switch options.units {
        case .cpu: return .cpuOnly
        case .ane: return .cpuAndNeuralEngine
        case .all: return .all
        }
    }

    // MARK: - A file

    private func enhance(_ package: Package, _ input: URL, _ output: URL) throws {
        let audio = try Audio(contentsOf: input)
        guard audio.sampleRate == package.description.contract.sampleRate else {
            throw Failure(description: "\(input.lastPathComponent) is at \(audio.sampleRate) Hz")
        }
        let enhanced = Audio(
            sampleRate: audio.sampleRate, channels: try audio.channels.map { try enhance(package, $0) })
        try enhanced.write(to: output)
        print("\(output.lastPathComponent): \(audio.channels.count) channels, \(audio.seconds) s")
        if let reference = options.reference { try compare(enhanced, URL(fileURLWithPath: reference)) }
    }

    /// One channel, aligned with its input.
    private func enhance(_ package: Package, _ samples: [Float]) throws -> [Float] {
        let enhancer = try package.makeEnhancer()
        enhancer.settings = Enhancer.Settings(
            attenuationLimit: options.attenuationLimit, postFilter: options.postFilter)
        let enhanced = try enhancer.process(samples) + enhancer.flush()
        return Array(enhanced.dropFirst(enhancer.delaySamples))
    }

    private func compare(_ enhanced: Audio, _ url: URL) throws {
        let reference = try Audio(contentsOf: url)
        let (got, want) = (enhanced.channels.flatMap { $0 }, reference.channels.flatMap { $0 })
        guard got.count == want.count else {
            throw Failure(description: "\(want.count) samples to compare with, not \(got.count)")
        }
        let signal = want.reduce(0.0) { $0 + Double($1) * Double($1) }
        let noise = zip(got, want).reduce(0.0) { $0 + pow(Double($1.0) - Double($1.1), 2) }
        let snr = 10 * log10(signal / noise)
        print(String(format: "SNR %.1f dB against %@", snr, url.lastPathComponent))
        if let least = options.leastSNR, !(snr >= least) {
            throw Failure(description: String(format: "SNR %.1f dB is below %.1f dB", snr, least))
        }
    }

    // MARK: - Placement and endurance

    private func writePlan(of package: Package, to path: String) async throws {
        guard #available(macOS 14.4, iOS 17.4, *) else {
            throw Failure(description: "a compute plan needs macOS 14.4")
        }
        let plan = try await ComputePlan(of: package)
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        try encoder.encode(plan).write(to: URL(fileURLWithPath: path))
        let placed = Dictionary(grouping: plan.operations) { $0.preferred ?? "nowhere" }.mapValues(\.count)
        print("operations by preferred device: \(placed)")
    }

    private func soak(_ package: Package, _ frames: Int) throws {
        let enhancer = try package.makeEnhancer()
        let hop = (0..<package.description.contract.hopSize).map { _ in Float.random(in: -0.1...0.1) }
        let (clock, settled) = (ContinuousClock(), max(1, frames / 10))
        var (times, before) = ([Double](), 0.0)
        for frame in 0..<frames {
            let time = try clock.measure { _ = try enhancer.process(hop) }
            times.append(Double(time.components.attoseconds) / 1e15 + Double(time.components.seconds) * 1e3)
            if frame + 1 == settled { before = residentMB() }
            if (frame + 1) % settled == 0 {
                print(String(format: "%d frames, %.1f MB resident", frame + 1, residentMB()))
            }
        }
        times.sort()
        print(String(format: "ms a hop: p50 %.3f, p99 %.3f", times[frames / 2], times[frames * 99 / 100]))
        let growth = residentMB() - before
        guard growth <= options.mostGrowthMB else {
            throw Failure(description: String(format: "memory grew by %.1f MB", growth))
        }
    }

    private func residentMB() -> Double {
        var info = mach_task_basic_info()
        var count = mach_msg_type_number_t(MemoryLayout.size(ofValue: info) / MemoryLayout<natural_t>.size)
        let result = withUnsafeMutablePointer(to: &info) { pointer in
            pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
                task_info(mach_task_self_, task_flavor_t(MACH_TASK_BASIC_INFO), $0, &count)
            }
        }
        return result == KERN_SUCCESS ? Double(info.resident_size) / 1_048_576 : .nan
    }
}
#endif
