#if canImport(CoreML)
import CoreML

/// A loaded package: share one among any number of streams, each with a network of its own.
///
/// Load it once, off the audio thread. A `.mlpackage` is compiled anew each time; an app lets Xcode compile it, or
/// keeps what `MLModel.compileModel` wrote, and gives the `.mlmodelc`. `X.json` lies beside either.
public final class Package {
    public let description: Description
    public let compiled: URL
    public let configuration: MLModelConfiguration
    private let model: MLModel

    /// The network is small: it takes less time on the CPU than the Neural Engine takes to be called.
    public init(contentsOf url: URL, computeUnits: MLComputeUnits = .cpuOnly) async throws {
        description = try Description(
            contentsOf: url.deletingPathExtension().appendingPathExtension("json"))
        compiled = url.pathExtension == "mlmodelc" ? url : try await MLModel.compileModel(at: url)
        configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
    }

    /// A stream ready to run: first predictions take long, so some are made and forgotten here.
    public func makeEnhancer() throws -> Enhancer {
        let enhancer = try Enhancer(contract: description.contract, network: makeNetwork())
        _ = try enhancer.process([Float](repeating: 0, count: 5 * description.contract.hopSize))
        try enhancer.reset()
        return enhancer
    }

    private func makeNetwork() throws -> any Network {
        let tensors = try Tensors(model, description.contract)
        switch description.state {
        case "explicit":
            return try ExplicitNetwork(model, tensors, description.states)
        case "coreml":
            guard #available(macOS 15, iOS 18, *) else {
                throw DFStreamError.unsupported("states inside the package before macOS 15 and iOS 18")
            }
            return try StateNetwork(model, tensors, description.states)
        default:
            throw DFStreamError.unsupported("states of the kind \(description.state)")
        }
    }
}

/// Features into the arrays of the model, results out of them.
struct Tensors {
    private static let (erb, spec) = ("feat_erb", "feat_spec")
    private static let (mask, coefs, lsnr) = ("mask", "coefs", "lsnr")

    let inputs: [String: MLMultiArray]
    private var level: [Float] = [0]

    init(_ model: MLModel, _ contract: Contract) throws {
        inputs = try Dictionary(uniqueKeysWithValues: [Self.erb, Self.spec].map { ($0, try model.input($0)) })
        for (name, array) in inputs where array.shape.map(\.intValue) != contract.network.inputs[name] {
            throw DFStreamError.unsupported("the input \(name) has the shape \(array.shape)")
        }
    }

    func write(_ features: FeatureFrame) throws {
        try inputs[Self.erb]!.write(features.erb)
        try inputs[Self.spec]!.write(features.spec)
    }

    mutating func read(_ output: any MLFeatureProvider, into results: inout NetworkResults) throws {
        try output.array(Self.mask).read(into: &results.mask)
        try output.array(Self.coefs).read(into: &results.coefs)
        try output.array(Self.lsnr).read(into: &level)
        results.lsnr = level[0]
    }
}

extension MLDictionaryFeatureProvider {
    convenience init(arrays: [String: MLMultiArray]) throws {
        try self.init(dictionary: arrays.mapValues { MLFeatureValue(multiArray: $0) })
    }
}

extension MLFeatureProvider {
    func array(_ name: String) throws -> MLMultiArray {
        guard let array = featureValue(for: name)?.multiArrayValue else { throw DFStreamError.missing(name) }
        return array
    }
}

extension MLModel {
    /// A new array of zeros for an input, of its declared shape and type.
    func input(_ name: String) throws -> MLMultiArray {
        guard let constraint = modelDescription.inputDescriptionsByName[name]?.multiArrayConstraint else {
            throw DFStreamError.missing(name)
        }
        let array = try MLMultiArray(shape: constraint.shape, dataType: constraint.dataType)
        try array.write([Float](repeating: 0, count: array.count))
        return array
    }
}
#endif
