#if canImport(CoreML)
import CoreML

extension MLMultiArray {
    /// Copies all elements in C order, whatever the strides and the type of the array.
    func read(into values: inout [Float]) throws {
        try check(values.count)
        switch dataType {
        case .float32: read(Float.self, into: &values)
        #if arch(arm64)
        case .float16: read(Float16.self, into: &values)
        #endif
        default: throw unsupportedType
        }
    }

    /// Sets all elements, given in C order.
    func write(_ values: [Float]) throws {
        try check(values.count)
        switch dataType {
        case .float32: write(Float.self, values)
        #if arch(arm64)
        case .float16: write(Float16.self, values)
        #endif
        default: throw unsupportedType
        }
    }

    func elements() throws -> [Float] {
        var values = [Float](repeating: 0, count: count)
        try read(into: &values)
        return values
    }

    private func check(_ given: Int) throws {
        guard given == count else { throw DFStreamError.unsupported("\(given) values for an array of \(shape)") }
    }

    /// Swift has no Float16 on Intel processors: take a package whose inputs and outputs are float32 there.
    private var unsupportedType: DFStreamError {
        .unsupported("arrays of type \(dataType.rawValue) on this processor")
    }

    private func read<Element: BinaryFloatingPoint>(_: Element.Type, into values: inout [Float]) {
        let strides = strides.map(\.intValue)
        withUnsafeBytes { bytes in
            let elements = bytes.assumingMemoryBound(to: Element.self)
            forEachRun(strides) { first, offset, length in
                for i in 0..<length { values[first + i] = Float(elements[offset + i * strides.last!]) }
            }
        }
    }

    private func write<Element: BinaryFloatingPoint>(_: Element.Type, _ values: [Float]) {
        withUnsafeMutableBytes { bytes, strides in
            let elements = bytes.assumingMemoryBound(to: Element.self)
            forEachRun(strides) { first, offset, length in
                for i in 0..<length { elements[offset + i * strides.last!] = Element(values[first + i]) }
            }
        }
    }

    /// Calls back for each run along the last axis: its first index in C order, where it lies, its length.
    private func forEachRun(_ strides: [Int], _ body: (_ first: Int, _ offset: Int, _ length: Int) -> Void) {
        let shape = shape.map(\.intValue)
        let length = shape.last ?? 1
        for first in stride(from: 0, to: count, by: length) {
            var (rest, offset) = (first / length, 0)
            for axis in shape.indices.dropLast().reversed() {
                offset += rest % shape[axis] * strides[axis]
                rest /= shape[axis]
            }
            body(first, offset, length)
        }
    }
}
#endif
