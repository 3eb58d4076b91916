package android.media;

public class AudioRecord {
    public static final int READ_BLOCKING = 0;

    public AudioRecord(int source, int rate, int channels, int format, int size) {}

    public static native int getMinBufferSize(int rate, int channels, int format);

    public native void startRecording();

    public native int read(float[] samples, int offset, int count, int mode);

    public native void stop();

    public native void release();
}
