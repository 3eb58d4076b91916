package android.content;

public abstract class Context {
    public native java.io.File getFilesDir();

    public native android.content.pm.PackageManager getPackageManager();

    public native String getPackageName();

    public native android.content.res.AssetManager getAssets();

    public native ContentResolver getContentResolver();

    public native int checkSelfPermission(String permission);
}
