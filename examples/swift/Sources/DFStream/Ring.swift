/// The newest frames of something, by age: 0 is the newest. Zeros at first.
struct Ring {
    private var frames: [[Float]]
    private var newest = 0

    init(frames count: Int, of size: Int) {
        frames = [[Float]](repeating: [Float](repeating: 0, count: size), count: count)
    }

    subscript(age: Int) -> [Float] { frames[(newest + age) % frames.count] }

    /// Copies elements: keeping the caller's array would make it allocate a new one for its next frame.
    mutating func push(_ frame: [Float]) {
        newest = (newest + frames.count - 1) % frames.count
        for i in frame.indices { frames[newest][i] = frame[i] }
    }
}
