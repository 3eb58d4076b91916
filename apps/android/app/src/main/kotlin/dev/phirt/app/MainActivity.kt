package dev.phirt.app

import android.Manifest
import android.app.Activity
import android.content.Intent
import android.content.pm.PackageManager
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import dev.phirt.PhirtChat
import dev.phirt.PhirtException
import dev.phirt.PhirtModel
import java.io.File
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors

private const val PICK_PICTURE = 1
private const val ASK_MICROPHONE = 2
private const val PACKAGE = "model"

/** One screen: what was said, a line to ask in, a picture, a recording, and a way to stop. */
class MainActivity : Activity() {
    // All that computes happens in this one thread; the screen never waits for it.
    private val worker: ExecutorService = Executors.newSingleThreadExecutor()
    private var model: PhirtModel? = null

    @Volatile private var chat: PhirtChat? = null
    private var recorder: Recorder? = null
    private lateinit var said: TextView
    private lateinit var question: EditText
    private lateinit var record: Button

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        said = TextView(this).apply { setTextIsSelectable(true) }
        question = EditText(this).apply { hint = "Ask something" }
        record = button("Record", ::toggleRecording)
        val buttons = LinearLayout(this).apply {
            addView(button("Send", ::send))
            addView(button("Picture", ::pickPicture))
            addView(record)
            addView(button("Stop") { chat?.cancel() })
        }
        val scroll = ScrollView(this).apply { addView(said) }
        setContentView(
            LinearLayout(this).apply {
                orientation = LinearLayout.VERTICAL
                addView(scroll, LinearLayout.LayoutParams(LinearLayout.LayoutParams.MATCH_PARENT, 0, 1f))
                addView(question)
                addView(buttons)
            },
        )
        compute {
            val opened = PhirtModel.open(unpacked().path)
            model = opened
            chat = opened.chat()
            show("${opened.info.name} is ready.\n")
        }
    }

    override fun onDestroy() {
        recorder?.stop()
        chat?.cancel()
        worker.execute {
            chat?.close()
            model?.close()
        }
        worker.shutdown()
        super.onDestroy()
    }

    private fun send() {
        val text = question.text.toString()
        question.setText("")
        show("\n> $text\n")
        compute {
            val answer = chat?.send(text) { piece ->
                show(piece)
                true
            }
            if (answer != null) show("\n(${answer.ids.size} tokens, ${answer.finish.name.lowercase()})\n")
        }
    }

    private fun pickPicture() {
        val pick = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*")
        startActivityForResult(pick, PICK_PICTURE)
    }

    @Deprecated("The successor needs a library; this is the smallest app.")
    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        val picture = data?.data
        if (requestCode != PICK_PICTURE || resultCode != RESULT_OK || picture == null) return
        compute {
            chat?.addImage(contentResolver, picture)
            show("[a picture is attached]\n")
        }
    }

    private fun toggleRecording() {
        recorder?.let {
            it.stop()
            return
        }
        if (checkSelfPermission(Manifest.permission.RECORD_AUDIO) != PackageManager.PERMISSION_GRANTED) {
            requestPermissions(arrayOf(Manifest.permission.RECORD_AUDIO), ASK_MICROPHONE)
            return
        }
        val own = Recorder()
        recorder = own
        record.text = "Done"
        compute {
            try {
                chat?.addAudio(own.record(), 16000)
                show("[a recording is attached]\n")
            } finally {
                runOnUiThread {
                    recorder = null
                    record.text = "Record"
                }
            }
        }
    }

    /** The package as files: the model maps its weights, which lie packed in the app. */
    private fun unpacked(): File {
        val folder = File(filesDir, PACKAGE)
        val done = File(filesDir, "$PACKAGE.${packageManager.getPackageInfo(packageName, 0).lastUpdateTime}")
        if (!done.exists()) {
            folder.deleteRecursively()
            folder.mkdirs()
            for (name in assets.list(PACKAGE).orEmpty()) {
                assets.open("$PACKAGE/$name").use { from -> File(folder, name).outputStream().use(from::copyTo) }
            }
            done.createNewFile()
        }
        return folder
    }

    private fun compute(work: () -> Unit) = worker.execute {
        try {
            work()
        } catch (error: PhirtException) {
            show("${error.message}\n")
        }
    }

    private fun show(text: String) = runOnUiThread { said.append(text) }

    private fun button(label: String, onClick: () -> Unit) = Button(this).apply {
        text = label
        setOnClickListener { onClick() }
    }
}
