"""The stages of the nightly run: plain functions over settings, store and manifests.

Each takes a :class:`reviewclf.settings.Settings` and small typed arguments and returns a
:class:`reviewclf.manifest.Manifest`. A stage is finished when its manifest is committed; running it again is a cheap no-op,
killing it leaves nothing visible. The DAGs and the command line call the same functions.
"""
