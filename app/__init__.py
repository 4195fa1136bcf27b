"""The API: serves HTTP and owns rows and files. Imports neither torch nor workers."""
