package android.content.res;

public final class AssetManager {
    public native String[] list(String path) throws java.io.IOException;

    public native java.io.InputStream open(String name) throws java.io.IOException;
}
