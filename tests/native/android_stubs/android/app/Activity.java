package android.app;

public abstract class Activity extends android.content.Context {
    public static final int RESULT_OK = -1;

    protected native void onCreate(android.os.Bundle savedInstanceState);

    protected native void onDestroy();

    protected native void onActivityResult(int requestCode, int resultCode, android.content.Intent data);

    public native void setContentView(android.view.View view);

    public native void startActivityForResult(android.content.Intent intent, int requestCode);

    public final native void requestPermissions(String[] permissions, int requestCode);

    public final native void runOnUiThread(Runnable action);
}
