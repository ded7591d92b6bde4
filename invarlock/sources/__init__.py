"""Where models and texts come from: installed packages, local files, the hub; and their pins."""
