package dev.phirt.app

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.ImageDecoder
import android.media.AudioFormat
import android.media.AudioRecord
import android.media.MediaRecorder
import android.net.Uri
import dev.phirt.PhirtChat

private const val RATE = 16000
private const val MOST_SECONDS = 30

/** Attaches a picture that the system decodes: upright, its colours in sRGB. */
fun PhirtChat.addImage(resolver: ContentResolver, picture: Uri) {
    val bitmap = ImageDecoder.decodeBitmap(ImageDecoder.createSource(resolver, picture)) { decoder, _, _ ->
        decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // pixels are read one by one
    }
    addImage(rgbOf(bitmap), bitmap.width, bitmap.height)
}

/** Red, green and blue bytes; what is transparent lies on white. */
fun rgbOf(bitmap: Bitmap): ByteArray {
    val rgb = ByteArray(3 * bitmap.width * bitmap.height)
    val row = IntArray(bitmap.width)
    var at = 0
    for (y in 0 until bitmap.height) {
        bitmap.getPixels(row, 0, bitmap.width, 0, y, bitmap.width, 1)
        for (pixel in row) {
            val opacity = pixel ushr 24
            for (shift in intArrayOf(16, 8, 0)) {
                val value = pixel ushr shift and 255
                rgb[at++] = ((value * opacity + 255 * (255 - opacity) + 127) / 255).toByte()
            }
        }
    }
    return rgb
}

/** Records what is said until [stop], at most half a minute, at the rate that models take. */
class Recorder {
    @Volatile private var stopped = false

    fun stop() {
        stopped = true
    }

    /** Samples from -1 to 1; blocks until it is stopped. The permission must have been given. */
    @Suppress("MissingPermission")
    fun record(): FloatArray {
        val format = AudioFormat.ENCODING_PCM_FLOAT
        val size = AudioRecord.getMinBufferSize(RATE, AudioFormat.CHANNEL_IN_MONO, format)
        val source = MediaRecorder.AudioSource.VOICE_RECOGNITION
        val recorder = AudioRecord(source, RATE, AudioFormat.CHANNEL_IN_MONO, format, 4 * size)
        val samples = FloatArray(RATE * MOST_SECONDS)
        var count = 0
        try {
            recorder.startRecording()
            while (!stopped && count < samples.size) {
                val wanted = minOf(RATE / 10, samples.size - count)
                val read = recorder.read(samples, count, wanted, AudioRecord.READ_BLOCKING)
                if (read <= 0) break
                count += read
            }
            recorder.stop()
        } finally {
            recorder.release()
        }
        return samples.copyOf(count)
    }
}
