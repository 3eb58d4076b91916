/** Answers a package's golden conversations through the Kotlin face, on a JVM: `java dev.phirt.GoldenKt PACKAGE`. */
package dev.phirt

import java.io.File
import java.util.concurrent.CountDownLatch
import kotlin.concurrent.thread

/** JSON as far as golden.json has it. */
private class Json(private val text: String) {
    private var at = 0

    fun value(): Any? {
        skip()
        return when (text[at]) {
            '{' -> members()
            '[' -> items()
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private fun skip() {
        while (text[at].isWhitespace()) at++
    }

    private fun word(word: String, value: Any?): Any? {
        check(text.startsWith(word, at))
        at += word.length
        return value
    }

    private fun number(): Double {
        val begin = at
        while (text[at] in "+-.eE0123456789") at++
        return text.substring(begin, at).toDouble()
    }

    private fun string(): String {
        val found = StringBuilder()
        at++
        while (text[at] != '"') {
            if (text[at] != '\\') {
                found.append(text[at++])
                continue
            }
            when (val escaped = text[at + 1]) {
                'n' -> found.append('\n')
                't' -> found.append('\t')
                'r' -> found.append('\r')
                'b' -> found.append('\b')
                'f' -> found.append('\u000c')
                'u' -> found.append(text.substring(at + 2, at + 6).toInt(16).toChar()).also { at += 4 }
                else -> found.append(escaped)
            }
            at += 2
        }
        at++
        return found.toString()
    }

    private fun items(): List<Any?> {
        val found = ArrayList<Any?>()
        at++
        skip()
        while (text[at] != ']') {
            found += value()
            skip()
            if (text[at] == ',') at++
            skip()
        }
        at++
        return found
    }

    private fun members(): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        at++
        skip()
        while (text[at] != '}') {
            val key = string()
            skip()
            at++
            found[key] = value()
            skip()
            if (text[at] == ',') at++
            skip()
        }
        at++
        return found
    }
}

private fun PhirtChat.attachPicture(file: File) {
    val bytes = file.readBytes()
    var at = 0
    val words = List(4) {
        val begin = at
        while (!bytes[at].toInt().toChar().isWhitespace()) at++
        String(bytes, begin, at++ - begin)
    }
    check(words[0] == "P6" && words[3] == "255")
    addImage(bytes.copyOfRange(at, bytes.size), words[1].toInt(), words[2].toInt())
}

private fun PhirtChat.attachRecording(file: File) {
    val bytes = file.readBytes()
    fun number(place: Int, count: Int) = (count - 1 downTo 0).fold(0) { n, i -> n shl 8 or (bytes[place + i].toInt() and 255) }
    val samples = FloatArray((bytes.size - 44) / 2) { number(44 + 2 * it, 2).toShort() / 32768f }
    addAudio(samples, number(24, 4))
}

@Suppress("UNCHECKED_CAST")
private fun isIdentical(model: PhirtModel, folder: File, known: Map<String, Any?>): Boolean {
    fun ids(value: Any?) = (value as List<Double>).map { it.toInt() }
    model.chat(known["system"] as String?).use { chat ->
        return (known["turns"] as List<Map<String, Any?>>).all { turn ->
            (turn["image"] as String?)?.let { chat.attachPicture(File(folder, it)) }
            (turn["audio"] as String?)?.let { chat.attachRecording(File(folder, it)) }
            val streamed = StringBuilder()
            val generation = Generation(maxNewTokens = (turn["max_new_tokens"] as Double).toInt())
            val answer = chat.send(turn["text"] as String, generation) { streamed.append(it).isNotEmpty() }
            val sure = turn["sure"] as Boolean // else rounding may change the answer, and the prompt alone counts
            answer.promptIds.toList() == ids(turn["prompt_ids"]) && answer.adapter == turn["adapter"] &&
                (!sure || (answer.ids.toList() == ids(turn["ids"]) && answer.text == turn["answer"])) &&
                streamed.toString() == answer.text
        }
    }
}

/** What the Kotlin face itself promises. */
private fun checkPromises(model: PhirtModel) {
    val long = Generation(maxNewTokens = 200, temperature = 1.5f, seed = 3)
    val failure = runCatching { PhirtModel.open("/nowhere") }.exceptionOrNull() as PhirtException
    check(failure.status == PhirtStatus.BUNDLE && '\n' !in failure.message!!)
    check(runCatching { model.chat().addImage(ByteArray(5), 2, 2) }.exceptionOrNull() is IllegalArgumentException)
    check(model.tokenize("naïve 👍🏽 \u0000x").isNotEmpty())
    val thrown = runCatching { model.chat().use { chat -> chat.send("Hi", long) { error("from the callback") } } }
    check(thrown.exceptionOrNull()?.message == "from the callback")
    val begun = CountDownLatch(1)
    val chat = model.chat()
    var finish: Finish? = null
    val worker = thread {
        finish = chat.send("Tell me a story.", long) {
            begun.countDown()
            true
        }.finish
    }
    begun.await()
    chat.close() // cancels, and frees when the answer has ended
    worker.join()
    check(finish == Finish.CANCELLED) { "the answer ended with $finish" }
    check(runCatching { chat.send("More") }.exceptionOrNull() is IllegalStateException)
    chat.close()
}

@Suppress("UNCHECKED_CAST")
fun main(words: Array<String>) {
    val folder = File(words[0])
    val begin = System.nanoTime()
    val golden = Json(File(folder, "golden.json").readText()).value() as Map<String, Any?>
    PhirtModel.open(folder.path, threads = 1).use { model ->
        val cases = golden["cases"] as List<Map<String, Any?>>
        val right = cases.count { known -> isIdentical(model, folder, known).also { println("${known["name"]}: $it") } }
        val seconds = (System.nanoTime() - begin) / 1e9
        checkPromises(model)
        val peak = File("/proc/self/status").takeIf { it.exists() }?.readLines()?.first { it.startsWith("VmHWM") }
        println("$right of ${cases.size} identical; phirt ${PhirtModel.versions}, Kotlin ${KotlinVersion.CURRENT}, ${"%.2f".format(seconds)} s, $peak")
        if (right < cases.size) kotlin.system.exitProcess(1)
    }
}
