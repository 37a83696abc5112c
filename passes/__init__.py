"""The methods, one file each. Import them as `dyncompile.passes`."""

if __name__ != "dyncompile.passes":
    raise ImportError(
        "import the passes as dyncompile.passes: under another name their classes would exist twice"
    )
