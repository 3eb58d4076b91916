/** A package that `phirt export --target android` has made, opened and asked. Nothing leaves the device. */
package dev.phirt

/** What went wrong, by the numbers of phirt.h. */
enum class PhirtStatus { OK, ARGUMENT, BUNDLE, MEDIA, CONTEXT, MEMORY, BUSY, RUNTIME }

/** One line that names the cause and the remedy. */
class PhirtException internal constructor(status: Int, utf8: ByteArray) : Exception(utf8.decodeToString()) {
    val status: PhirtStatus = PhirtStatus.values()[status]
}

/** How closely a picture is looked at, where the model can choose. */
enum class ImageDetail { LOW, AUTO, HIGH }

/** Why an answer ended. */
enum class Finish { STOP, LENGTH, CONTEXT, CANCELLED }

/** How an answer is chosen. [temperature] 0 takes the best token each time; [seed] 0 draws anew each time. */
data class Generation(
    val maxNewTokens: Int = 512,
    val temperature: Float = 0f,
    val topK: Int = 0,
    val topP: Float = 1f,
    val minP: Float = 0f,
    val repetitionPenalty: Float = 1f,
    val seed: Long = 0,
)

/** A finished answer. */
class Answer internal constructor(
    val text: String,
    val ids: IntArray,
    val promptIds: IntArray,
    val finish: Finish,
    val adapter: String,
    val promptTokens: Int,
    val cachedTokens: Int,
    val mediaSeconds: Double,
    val prefillSeconds: Double,
    val decodeSeconds: Double,
)

/** What a model is like. */
data class ModelInfo(
    val name: String,
    val vocabSize: Int,
    val context: Int,
    val takesImages: Boolean,
    val takesAudio: Boolean,
    val maxPixels: Long,
    val maxSeconds: Double,
)

/**
 * An opened package. Safe to use from many threads; close it at the end. Opening reads files for a second or more, so
 * it is nothing for the main thread.
 */
class PhirtModel private constructor(private val handle: Handle) : AutoCloseable {
    val info: ModelInfo = handle.use { model ->
        val numbers = Native.modelNumbers(model)
        ModelInfo(
            Native.modelName(model).decodeToString(),
            numbers[0].toInt(),
            numbers[1].toInt(),
            numbers[2] != 0L,
            numbers[3] != 0L,
            numbers[4],
            numbers[5] / 1000.0,
        )
    }

    /** What the model's makers recommend. */
    val defaults: Generation = handle.use { model ->
        val n = Native.defaults(model)
        Generation(n[0].toInt(), n[1].toFloat(), n[2].toInt(), n[3].toFloat(), n[4].toFloat(), n[5].toFloat())
    }

    /** A conversation with an empty history; [system] is what the model is told first. */
    fun chat(system: String? = null): PhirtChat =
        handle.use { PhirtChat(Native.createChat(it, system?.encodeToByteArray()), defaults) }

    /** Token ids of text as somebody types it. */
    fun tokenize(text: String): IntArray = handle.use { Native.tokenize(it, text.encodeToByteArray()) }

    /** Gives the memory of the encoders back; they open again when they are needed. */
    fun releaseEncoders() = handle.use(Native::releaseEncoders)

    override fun close() = handle.close()

    companion object {
        /** Opens the package in [folder]. [threads] 0: as many as are good. Throws [PhirtException]. */
        fun open(folder: String, threads: Int = 0): PhirtModel =
            PhirtModel(Handle(Native.openModel(folder.encodeToByteArray(), threads), Native::closeModel))

        /** Versions of this library and of onnxruntime. */
        val versions: String get() = Native.versions().decodeToString()
    }
}

/**
 * A conversation. One request at a time; [cancel] may come from any thread. [send] computes in the thread that calls it,
 * which is not to be the main one.
 */
class PhirtChat internal constructor(chat: Long, private val defaults: Generation) : AutoCloseable {
    private val handle = Handle(chat, Native::destroyChat)

    /** Attaches a picture to the next turn: red, green and blue bytes, upright, rows from the top. */
    fun addImage(rgb: ByteArray, width: Int, height: Int, detail: ImageDetail = ImageDetail.AUTO) {
        require(width > 0 && height > 0 && rgb.size.toLong() == 3L * width * height) {
            "a picture of $width x $height pixels has ${3L * width * height} bytes, not ${rgb.size}"
        }
        handle.use { Native.addImage(it, rgb, width, height, detail.ordinal) }
    }

    /** Attaches a recording to the next turn: samples from -1 to 1, channels interleaved, [rate] in Hz. */
    fun addAudio(samples: FloatArray, rate: Int, channels: Int = 1) {
        require(channels > 0 && samples.size % channels == 0) { "${samples.size} samples are not $channels channels" }
        handle.use { Native.addAudio(it, samples, channels, rate) }
    }

    /** Drops what was attached and not sent yet. */
    fun discardMedia() = handle.use(Native::discardMedia)

    /** Forgets all turns; the system message stays. */
    fun reset() = handle.use(Native::resetChat)

    /**
     * Sends a turn with what is attached. [onPiece] gets each piece of the answer in this thread; false ends it.
     * Throws [PhirtException]; then history and attachments are as before. What [onPiece] throws goes through.
     */
    fun send(text: String, generation: Generation = defaults, onPiece: (String) -> Boolean = { true }): Answer =
        handle.use { chat ->
            val listener = Listener(onPiece)
            val numbers = Native.send(
                chat,
                text.encodeToByteArray(),
                generation.maxNewTokens,
                generation.temperature,
                generation.topK,
                generation.topP,
                generation.minP,
                generation.repetitionPenalty,
                generation.seed,
                listener,
            )
            Answer(
                Native.answer(chat).decodeToString(),
                Native.answerIds(chat),
                Native.promptIds(chat),
                Finish.values()[numbers[0].toInt()],
                listener.adapter,
                numbers[1].toInt(),
                numbers[2].toInt(),
                numbers[4],
                numbers[5],
                numbers[6],
            )
        }

    /** Ends the answer that is being made within a step. */
    fun cancel() = handle.use(Native::cancel)

    /** Ends an answer that is being made, and gives the memory back once it has ended. */
    override fun close() {
        runCatching { cancel() } // it may be closed already
        handle.close()
    }
}
