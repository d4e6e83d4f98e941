"""Files and waits: the ground that everything stands on. Nothing here knows a model, and little of it imports torch.

A file is whole or not there, whatever is pulled out meanwhile; what is read is checked, and nothing stored is executed.

* `atomic`: atomic writes, signals that wait, JSON that is checked;
* `names`: class names as names of folders, and back;
* `archives`: named tensors with what they are, in one safetensors file;
* `places`: where models are found, those that come with condgen included;
* `progress`: what is told while one waits.
"""
