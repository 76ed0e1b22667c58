#if canImport(CoreML)
import CoreML

/// A package whose states are inputs and outputs. Two sets of arrays take turns: what one call writes, the next
/// one reads.
final class ExplicitNetwork: Network {
    private struct Turn {
        let input: MLDictionaryFeatureProvider
        let options = MLPredictionOptions()
        /// By name of the state.
        let states: [String: MLMultiArray]
        let next: [String: MLMultiArray]
    }

    private let model: MLModel
    /// Names of the outputs that carry next values, by name of the state.
    private let outputs: [String: String]
    private var tensors: Tensors
    private let turns: [Turn]
    private var current = 0

    init(_ model: MLModel, _ tensors: Tensors, _ states: [Description.State]) throws {
        (self.model, self.tensors) = (model, tensors)
        let outputs = Dictionary(uniqueKeysWithValues: states.map { ($0.name, $0.output ?? "") })
        self.outputs = outputs
        let sets = try (0..<2).map { _ in
            try Dictionary(uniqueKeysWithValues: outputs.keys.map { ($0, try model.input($0)) })
        }
        for (name, output) in outputs {
            let given = model.modelDescription.outputDescriptionsByName[output]
            guard given?.multiArrayConstraint?.dataType == sets[0][name]!.dataType else {
                throw DFStreamError.unsupported("\(output) cannot be given back as \(name)")
            }
        }
        turns = try [(sets[0], sets[1]), (sets[1], sets[0])].map { now, next in
            let inputs = tensors.inputs.merging(now) { given, _ in given }
            let turn = Turn(
                input: try MLDictionaryFeatureProvider(arrays: inputs), states: now, next: next)
            turn.options.outputBackings = Dictionary(
                uniqueKeysWithValues: outputs.map { name, output in (output, next[name]!) })
            return turn
        }
    }

    func advance(_ features: FeatureFrame, into results: inout NetworkResults) throws {
        // without a pool of their own, temporaries pile up on threads that have no run loop
        try autoreleasepool {
            let turn = turns[current]
            try tensors.write(features)
            let output = try model.prediction(from: turn.input, options: turn.options)
            for (name, next) in outputs {
                let (given, kept) = (try output.array(next), turn.next[name]!)
                // Core ML may, but need not, write to the arrays it is offered
                if given !== kept { try kept.write(given.elements()) }
            }
            try tensors.read(output, into: &results)
            current = 1 - current
        }
    }

    func reset() throws {
        for array in turns[current].states.values {
            try array.write([Float](repeating: 0, count: array.count))
        }
    }

    func snapshot() throws -> [String: [Float]] {
        try turns[current].states.mapValues { try $0.elements() }
    }

    func restore(_ states: [String: [Float]]) throws {
        for (name, array) in turns[current].states {
            guard let values = states[name] else { throw DFStreamError.missing(name) }
            try array.write(values)
        }
    }
}
#endif
