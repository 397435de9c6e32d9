"""The sample inside the package: real proteins in their sources' own formats. README.md says where each comes from."""
