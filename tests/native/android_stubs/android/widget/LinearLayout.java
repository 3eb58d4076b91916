package android.widget;

public class LinearLayout extends android.view.ViewGroup {
    public static final int VERTICAL = 1;

    public static class LayoutParams extends android.view.ViewGroup.LayoutParams {
        public static final int MATCH_PARENT = -1;

        public LayoutParams(int width, int height, float weight) {}
    }

    public LinearLayout(android.content.Context context) {
        super(context);
    }

    public native int getOrientation();

    public native void setOrientation(int orientation);
}
