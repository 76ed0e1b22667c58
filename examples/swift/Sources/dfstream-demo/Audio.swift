#if canImport(AVFoundation)
import AVFoundation

/// Samples of a file, channel by channel; full scale is 1.
struct Audio {
    let sampleRate: Int
    let channels: [[Float]]

    var seconds: Double { Double(channels.first?.count ?? 0) / Double(sampleRate) }

    init(sampleRate: Int, channels: [[Float]]) {
        (self.sampleRate, self.channels) = (sampleRate, channels)
    }

    init(contentsOf url: URL) throws {
        let file = try AVAudioFile(forReading: url, commonFormat: .pcmFormatFloat32, interleaved: false)
        let frames = AVAudioFrameCount(file.length)
        guard let buffer = AVAudioPCMBuffer(pcmFormat: file.processingFormat, frameCapacity: max(frames, 1))
        else { throw Failure(description: "no memory for \(url.lastPathComponent)") }
        if frames > 0 { try file.read(into: buffer) }
        sampleRate = Int(file.processingFormat.sampleRate)
        channels = (0..<Int(file.processingFormat.channelCount)).map { channel in
            Array(UnsafeBufferPointer(start: buffer.floatChannelData![channel], count: Int(buffer.frameLength)))
        }
    }

    /// Writes 32-bit floats: nothing is clipped or rounded.
    func write(to url: URL) throws {
        let settings: [String: Any] = [
            AVFormatIDKey: kAudioFormatLinearPCM, AVSampleRateKey: sampleRate,
            AVNumberOfChannelsKey: channels.count, AVLinearPCMBitDepthKey: 32, AVLinearPCMIsFloatKey: true,
        ]
        let file = try AVAudioFile(
            forWriting: url, settings: settings, commonFormat: .pcmFormatFloat32, interleaved: false)
        let frames = AVAudioFrameCount(channels.first?.count ?? 0)
        guard let buffer = AVAudioPCMBuffer(pcmFormat: file.processingFormat, frameCapacity: max(frames, 1))
        else { throw Failure(description: "no memory for \(url.lastPathComponent)") }
        for (channel, samples) in channels.enumerated() {
            for (i, sample) in samples.enumerated() { buffer.floatChannelData![channel][i] = sample }
        }
        buffer.frameLength = frames
        try file.write(from: buffer)
    }
}
#endif
