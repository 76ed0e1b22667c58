#if canImport(CoreML)
import CoreML

/// A package that holds its states itself: one `MLState` for each stream.
@available(macOS 15, iOS 18, *)
final class StateNetwork: Network {
    private let model: MLModel
    private let states: [Description.State]
    private var tensors: Tensors
    private let input: MLDictionaryFeatureProvider
    private var state: MLState

    init(_ model: MLModel, _ tensors: Tensors, _ states: [Description.State]) throws {
        (self.model, self.tensors, self.states) = (model, tensors, states)
        input = try MLDictionaryFeatureProvider(arrays: tensors.inputs)
        state = model.makeState()
    }

    func advance(_ features: FeatureFrame, into results: inout NetworkResults) throws {
        // without a pool of their own, temporaries pile up on threads that have no run loop
        try autoreleasepool {
            try tensors.write(features)
            try tensors.read(model.prediction(from: input, using: state), into: &results)
        }
    }

    func reset() throws { state = model.makeState() }

    func snapshot() throws -> [String: [Float]] {
        try Dictionary(
            uniqueKeysWithValues: states.map { entry in
                (entry.name, try state.withMultiArray(for: entry.name) { try $0.elements() })
            })
    }

    func restore(_ states: [String: [Float]]) throws {
        for entry in self.states {
            guard let values = states[entry.name] else { throw DFStreamError.missing(entry.name) }
            try state.withMultiArray(for: entry.name) { try $0.write(values) }
        }
    }
}
#endif
