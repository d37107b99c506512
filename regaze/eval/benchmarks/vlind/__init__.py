"""VLind-Bench: does a model follow the image, or what it knows of the world?"""
