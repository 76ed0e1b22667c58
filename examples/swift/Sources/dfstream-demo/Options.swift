/// What the command line says.
struct Options {
    static let usage = """
        usage: dfstream-demo X.mlpackage [IN.wav OUT.wav] [options], with X.json beside X.mlpackage
          --atten-lim-db DB     leave some of the noise
          --post-filter BETA    sharpen: 0.02 is usual
          --units cpu|ane|all   where Core ML may run the network: cpu
          --compare REF.wav     print the SNR of OUT.wav against what `dfstream run` made of IN.wav
          --least-snr DB        fail below
          --soak FRAMES         time every hop of so many frames and watch the memory
          --most-growth-mb MB   fail beyond: 20
          --compute-plan FILE   write where Core ML means to run each operation (macOS 14.4)
        """

    struct UsageError: Error { let message: String }

    let package: String
    let input: String?
    let output: String?
    var attenuationLimit: Float?
    var postFilter: Float = 0
    var units = Units.cpu
    var reference: String?
    var leastSNR: Double?
    var soakFrames: Int?
    var mostGrowthMB = 20.0
    var computePlan: String?

    enum Units: String { case cpu, ane, all }

    init(_ arguments: [String]) throws {
        var files: [String] = []
        var rest = arguments[...]
        while let argument = rest.popFirst() {
            func value<Value>(_ parse: (String) -> Value?) throws -> Value {
                guard let text = rest.popFirst(), let value = parse(text) else {
                    throw UsageError(message: "\(argument) needs a value")
                }
                return value
            }
            switch argument {
            case "--atten-lim-db": attenuationLimit = try value(Float.init)
            case "--post-filter": postFilter = try value(Float.init)
            case "--units": units = try value(Units.init(rawValue:))
            case "--compare": reference = try value { $0 }
            case "--least-snr": leastSNR = try value(Double.init)
            case "--soak": soakFrames = try value { Int($0).flatMap { $0 > 0 ? $0 : nil } }
            case "--most-growth-mb": mostGrowthMB = try value(Double.init)
            case "--compute-plan": computePlan = try value { $0 }
            case _ where argument.hasPrefix("--"): throw UsageError(message: "no option \(argument)")
            default: files.append(argument)
            }
        }
        guard files.count == 1 || files.count == 3 else { throw UsageError(message: "which files?") }
        package = files[0]
        (input, output) = files.count == 3 ? (files[1], files[2]) : (nil, nil)
        guard reference == nil || output != nil else {
            throw UsageError(message: "--compare needs IN.wav and OUT.wav")
        }
        guard leastSNR == nil || reference != nil else { throw UsageError(message: "--least-snr needs --compare") }
    }
}
