package android.graphics;

public final class ImageDecoder {
    public static final int ALLOCATOR_SOFTWARE = 1;

    public abstract static class Source {}

    public static class ImageInfo {}

    public interface OnHeaderDecodedListener {
        void onHeaderDecoded(ImageDecoder decoder, ImageInfo info, Source source);
    }

    public static native Source createSource(android.content.ContentResolver resolver, android.net.Uri uri);

    public static native Bitmap decodeBitmap(Source source, OnHeaderDecodedListener listener) throws java.io.IOException;

    public native int getAllocator();

    public native void setAllocator(int allocator);
}
