"""Several devices and several processes: the mesh, where arrays live on it, and values that processes share."""
