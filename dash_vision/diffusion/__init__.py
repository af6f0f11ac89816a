"""What a DreamBooth run needs: images, model families, caching, loss, sampling."""
