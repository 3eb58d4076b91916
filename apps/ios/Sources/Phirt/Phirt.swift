// A package that `phirt export --target ios` has made, opened and asked. Nothing leaves the device.

import CPhirt
import Foundation

/// One line that names the cause and the remedy, and its kind by the numbers of phirt.h.
public struct PhirtError: LocalizedError {
    public enum Kind: UInt32 {
        case argument = 1, bundle, media, context, memory, busy, runtime
    }

    public let kind: Kind
    public let message: String
    public var errorDescription: String? { message }
}

/// How closely a picture is looked at, where the model can choose.
public enum ImageDetail: UInt32 {
    case low = 0, auto, high
}

/// Why an answer ended.
public enum Finish: UInt32 {
    case stop = 0, length, context, cancelled
}

/// How an answer is chosen. `temperature` 0 takes the best token each time; `seed` 0 draws anew each time.
public struct Generation {
    public var maxNewTokens: Int32 = 512
    public var temperature: Float = 0
    public var topK: Int32 = 0
    public var topP: Float = 1
    public var minP: Float = 0
    public var repetitionPenalty: Float = 1
    public var seed: UInt64 = 0

    public init() {}

    init(_ c: phirt_generation) {
        maxNewTokens = c.max_new_tokens
        temperature = c.temperature
        topK = c.top_k
        topP = c.top_p
        minP = c.min_p
        repetitionPenalty = c.repetition_penalty
    }

    var c: phirt_generation {
        phirt_generation(
            max_new_tokens: maxNewTokens, temperature: temperature, top_k: topK, top_p: topP, min_p: minP,
            repetition_penalty: repetitionPenalty, seed: seed
        )
    }
}

/// A finished answer.
public struct Answer {
    public let text: String
    public let ids: [Int32]
    public let promptIds: [Int32]
    public let finish: Finish
    public let adapter: String
    public let promptTokens: Int
    public let cachedTokens: Int
    public let mediaSeconds: Double
    public let prefillSeconds: Double
    public let decodeSeconds: Double
}

/// What a model is like.
public struct ModelInfo {
    public let name: String
    public let vocabSize: Int
    public let context: Int
    public let takesImages: Bool
    public let takesAudio: Bool
    public let maxPixels: Int64
    public let maxSeconds: Double
}

/// Throws what a function of phirt.h reports.
func check(_ call: (inout phirt_error) -> phirt_status) throws {
    var error = phirt_error()
    let status = call(&error)
    if status.rawValue == 0 { return }
    let message = withUnsafeBytes(of: &error.message) { bytes in
        String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
    throw PhirtError(kind: PhirtError.Kind(rawValue: UInt32(status.rawValue)) ?? .runtime, message: message)
}

/// An opened package. Safe to use from many threads. Opening reads files for a second or more, so it is nothing for
/// the main thread.
public final class PhirtModel: @unchecked Sendable {
    let handle: OpaquePointer
    public let info: ModelInfo
    /// What the model's makers recommend.
    public let defaults: Generation

    /// Opens the package in a folder, such as one in the app's bundle. `threads` 0: as many as are good.
    public init(folder: URL, threads: Int32 = 0) throws {
        var opened: OpaquePointer?
        var options = phirt_model_options(threads: threads)
        try check { phirt_model_open(folder.path, &options, &opened, &$0) }
        handle = opened!
        var described = phirt_model_info()
        var generation = phirt_generation()
        phirt_generation_defaults(opened, &generation)
        defaults = Generation(generation)
        do {
            try check { phirt_model_describe(opened, &described, &$0) }
        } catch {
            phirt_model_close(opened)
            throw error
        }
        info = ModelInfo(
            name: String(cString: described.name), vocabSize: Int(described.vocab_size), context: Int(described.context),
            takesImages: described.takes_images != 0, takesAudio: described.takes_audio != 0,
            maxPixels: described.max_pixels, maxSeconds: described.max_seconds
        )
    }

    deinit { phirt_model_close(handle) }

    /// A conversation with an empty history; `system` is what the model is told first.
    public func chat(system: String? = nil) throws -> PhirtChat {
        var created: OpaquePointer?
        if let system {
            try check { phirt_chat_create(handle, system, &created, &$0) }
        } else {
            try check { phirt_chat_create(handle, nil, &created, &$0) }
        }
        return PhirtChat(created!, defaults: defaults)
    }

    /// Token ids of text as somebody types it.
    public func tokenize(_ text: String) throws -> [Int32] {
        var ids = [Int32](repeating: 0, count: max(text.utf8.count, 1))  // a token has a byte at least
        var count = 0
        let capacity = ids.count
        try check { phirt_model_tokenize(handle, text, &ids, capacity, &count, &$0) }
        return Array(ids.prefix(count))
    }

    /// Gives the memory of the encoders back, as when the system warns; they open again when they are needed.
    public func releaseEncoders() { phirt_model_release_encoders(handle) }

    /// Versions of this library and of onnxruntime.
    public static var versions: String {
        "\(String(cString: phirt_version())) on onnxruntime \(String(cString: phirt_onnxruntime_version()))"
    }
}

/// A conversation. One request at a time; `cancel` may come from any thread.
public final class PhirtChat: @unchecked Sendable {
    private let handle: OpaquePointer
    private let defaults: Generation
    private let queue = DispatchQueue(label: "dev.phirt.chat", qos: .userInitiated)

    init(_ handle: OpaquePointer, defaults: Generation) {
        self.handle = handle
        self.defaults = defaults
    }

    deinit { phirt_chat_destroy(handle) }

    /// Attaches a picture to the next turn: red, green and blue bytes, upright, rows from the top.
    public func addImage(rgb: [UInt8], width: Int, height: Int, detail: ImageDetail = .auto) throws {
        guard width > 0, height > 0, rgb.count == 3 * width * height else {
            throw PhirtError(kind: .argument, message: "a picture of \(width) x \(height) pixels has not \(rgb.count) bytes")
        }
        let detail = phirt_detail(rawValue: .init(detail.rawValue))
        try check { phirt_chat_add_image(handle, rgb, Int32(width), Int32(height), 0, detail, &$0) }
    }

    /// Attaches a recording to the next turn: samples from -1 to 1, channels interleaved, `rate` in Hz.
    public func addAudio(_ samples: [Float], rate: Int, channels: Int = 1) throws {
        guard channels > 0, samples.count % channels == 0 else {
            throw PhirtError(kind: .argument, message: "\(samples.count) samples are not \(channels) channels")
        }
        let count = samples.count / channels
        try check { phirt_chat_add_audio(handle, samples, count, Int32(channels), Int32(rate), &$0) }
    }

    /// Drops what was attached and not sent yet.
    public func discardMedia() throws { try check { phirt_chat_discard_media(handle, &$0) } }

    /// Forgets all turns; the system message stays.
    public func reset() throws { try check { phirt_chat_reset(handle, &$0) } }

    /// Ends the answer that is being made within a step.
    public func cancel() { phirt_chat_cancel(handle) }

    /// Sends a turn with what is attached, and computes in the thread that calls it. `onPiece` gets each piece of the
    /// answer; false ends it. When it throws, history and attachments are as before.
    @discardableResult
    public func send(
        _ text: String, generation: Generation? = nil, onPiece: @escaping (String) -> Bool = { _ in true }
    ) throws -> Answer {
        let listener = Listener(onPiece)
        var settings = (generation ?? defaults).c
        var result = phirt_result()
        let user = Unmanaged.passUnretained(listener).toOpaque()
        try withExtendedLifetime(listener) {
            try check { phirt_chat_send(handle, text, &settings, give, user, &result, &$0) }
        }
        let adapter = withUnsafeBytes(of: &result.adapter) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        return Answer(
            text: String(cString: phirt_chat_answer(handle)), ids: ids(phirt_chat_answer_ids),
            promptIds: ids(phirt_chat_prompt_ids), finish: Finish(rawValue: UInt32(result.finish.rawValue)) ?? .stop,
            adapter: adapter, promptTokens: Int(result.prompt_tokens), cachedTokens: Int(result.cached_tokens),
            mediaSeconds: result.media_seconds, prefillSeconds: result.prefill_seconds,
            decodeSeconds: result.decode_seconds
        )
    }

    /// The same as pieces to iterate over, computed in a queue of the chat's own. Leaving the loop ends the answer.
    public func stream(_ text: String, generation: Generation? = nil) -> AsyncThrowingStream<String, Error> {
        AsyncThrowingStream { continuation in
            continuation.onTermination = { [weak self] reason in
                if case .cancelled = reason { self?.cancel() }
            }
            queue.async { [self] in
                do {
                    try send(text, generation: generation) { piece in
                        if case .terminated = continuation.yield(piece) { return false }
                        return true
                    }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
        }
    }

    private func ids(_ get: (OpaquePointer?, UnsafeMutablePointer<Int>?) -> UnsafePointer<Int32>?) -> [Int32] {
        var count = 0
        guard let first = get(handle, &count) else { return [] }
        return Array(UnsafeBufferPointer(start: first, count: count))
    }
}

/// Whom the core tells of an answer while it is made.
private final class Listener {
    let onPiece: (String) -> Bool
    init(_ onPiece: @escaping (String) -> Bool) { self.onPiece = onPiece }
}

private func give(_ text: UnsafePointer<CChar>?, _ length: Int, _ user: UnsafeMutableRawPointer?) -> Int32 {
    guard let text, let user else { return 1 }
    let listener = Unmanaged<Listener>.fromOpaque(user).takeUnretainedValue()
    let bytes = UnsafeRawBufferPointer(start: text, count: length)
    return listener.onPiece(String(decoding: bytes, as: UTF8.self)) ? 0 : 1
}
