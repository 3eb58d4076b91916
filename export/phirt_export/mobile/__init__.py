"""What an app on a phone loads: a bundle with the files that a small host needs beside it. See `package`."""
