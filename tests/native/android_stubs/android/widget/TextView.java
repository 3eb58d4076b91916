package android.widget;

public class TextView extends android.view.View {
    public TextView(android.content.Context context) {
        super(context);
    }

    public native CharSequence getText();

    public final native void setText(CharSequence text);

    public final native void append(CharSequence text);

    public native CharSequence getHint();

    public final native void setHint(CharSequence hint);

    public native void setTextIsSelectable(boolean selectable);
}
