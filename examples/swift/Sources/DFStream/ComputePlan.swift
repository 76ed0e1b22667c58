#if canImport(CoreML)
import CoreML

/// Where Core ML means to run each operation: eligible is not placed, so ask before saying "Neural Engine".
public struct ComputePlan: Encodable, Sendable {
    public struct Operation: Encodable, Sendable {
        public let name: String
        public let kind: String
        public let preferred: String?
        public let supported: [String]
        /// Share of the whole cost, 0 to 1.
        public let cost: Double?
    }

    public let operations: [Operation]

    @available(macOS 14.4, iOS 17.4, *)
    public init(of package: Package) async throws {
        let plan = try await MLComputePlan.load(
            contentsOf: package.compiled, configuration: package.configuration)
        guard case .program(let program) = plan.modelStructure, let main = program.functions["main"] else {
            throw DFStreamError.unsupported("a compute plan of what is no ML Program")
        }
        operations = main.block.operations.filter { !$0.operatorName.hasSuffix("const") }.map { operation in
            let usage = plan.deviceUsage(for: operation)
            return Operation(
                name: operation.outputs.first?.name ?? "",
                kind: operation.operatorName,
                preferred: usage.map { Self.name(of: $0.preferred) },
                supported: usage?.supported.map(Self.name) ?? [],
                cost: plan.estimatedCost(of: operation)?.weight)
        }
    }

    @available(macOS 14.4, iOS 17.4, *)
    private static func name(of device: MLComputeDevice) -> String {
        switch device {
        case .cpu: return "cpu"
        case .gpu: return "gpu"
        case .neuralEngine: return "neural engine"
        @unknown default: return "unknown"
        }
    }
}
#endif
