package dev.phirt

/**
 * The functions of libphirt_jni, as they are: handles and arrays. Text is UTF-8. Apps use [PhirtModel] and [PhirtChat],
 * which know when a handle is valid.
 */
internal object Native {
    init {
        // A path for tests on a JVM; an app has the library in its package.
        val path = System.getProperty("dev.phirt.library")
        if (path == null) System.loadLibrary("phirt_jni") else System.load(path)
    }

    @JvmStatic external fun versions(): ByteArray

    @JvmStatic external fun openModel(folder: ByteArray, threads: Int): Long

    @JvmStatic external fun closeModel(model: Long)

    @JvmStatic external fun releaseEncoders(model: Long)

    @JvmStatic external fun modelName(model: Long): ByteArray

    @JvmStatic external fun modelNumbers(model: Long): LongArray

    @JvmStatic external fun defaults(model: Long): DoubleArray

    @JvmStatic external fun tokenize(model: Long, text: ByteArray): IntArray

    @JvmStatic external fun createChat(model: Long, system: ByteArray?): Long

    @JvmStatic external fun destroyChat(chat: Long)

    @JvmStatic external fun resetChat(chat: Long)

    @JvmStatic external fun discardMedia(chat: Long)

    @JvmStatic external fun cancel(chat: Long)

    @JvmStatic external fun addImage(chat: Long, rgb: ByteArray, width: Int, height: Int, detail: Int)

    @JvmStatic external fun addAudio(chat: Long, samples: FloatArray, channels: Int, rate: Int)

    @JvmStatic
    external fun send(
        chat: Long,
        text: ByteArray,
        maxNewTokens: Int,
        temperature: Float,
        topK: Int,
        topP: Float,
        minP: Float,
        repetitionPenalty: Float,
        seed: Long,
        listener: Listener,
    ): DoubleArray

    @JvmStatic external fun answer(chat: Long): ByteArray

    @JvmStatic external fun answerIds(chat: Long): IntArray

    @JvmStatic external fun promptIds(chat: Long): IntArray
}

/** Whom the native side tells of an answer while it is made. Its methods are found by name. */
internal class Listener(private val piece: (String) -> Boolean) {
    var adapter: String = ""
        private set

    @Suppress("unused")
    fun onPiece(utf8: ByteArray): Boolean = piece(utf8.decodeToString())

    @Suppress("unused")
    fun onAdapter(utf8: ByteArray) {
        adapter = utf8.decodeToString()
    }
}

/** A handle that is closed once, by whoever is last: those who use it hold it open meanwhile. */
internal class Handle(private var value: Long, private val destroy: (Long) -> Unit) {
    private var users = 0
    private var closing = false

    fun <T> use(work: (Long) -> T): T {
        synchronized(this) {
            check(!closing) { "it is closed" }
            users++
        }
        try {
            return work(value)
        } finally {
            synchronized(this) {
                users--
                destroyIfUnused()
            }
        }
    }

    /** Closes it, now or when the last of its users is done. */
    fun close() = synchronized(this) {
        closing = true
        destroyIfUnused()
    }

    private fun destroyIfUnused() {
        if (closing && users == 0 && value != 0L) {
            destroy(value)
            value = 0
        }
    }
}
