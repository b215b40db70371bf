"""Tool calls as models write them: one reader for each form of writing them.

``neuron.text.answer_splitter`` finds where a call begins, and feeds a reader until the call is over
or turns out to be plain text. A new form needs a style (which templates ask for it, which marks
open a call) and, where no reader understands it, a reader.

Read ``call_style`` first, then ``call_reader`` (what all of them do), ``json_stream`` (JSON in
pieces), ``json_calls`` and ``xml_calls``.
"""
