/* Print the offsets of one CPython's structures as JSON: see scripts/cpython-offsets. For 3.10, 3.11 and 3.12. */
#define Py_BUILD_CORE 1
#include <Python.h>
#include <stddef.h>
#include <stdio.h>
#include "internal/pycore_interp.h"
#include "internal/pycore_runtime.h"
#if PY_VERSION_HEX >= 0x030b0000
#include "internal/pycore_code.h"
#include "internal/pycore_frame.h"
#else
#include "frameobject.h"
#endif

#define OFFSET(name, type, field) printf(" \"%s\": %zu,\n", name, offsetof(type, field))
#define NONE(name) printf(" \"%s\": null,\n", name)

int main(void)
{
	printf("{\n \"minor\": %d,\n", PY_MINOR_VERSION);
	OFFSET("runtime_interpreters", _PyRuntimeState, interpreters.head);
	OFFSET("interpreter_next", PyInterpreterState, next);
	OFFSET("thread_next", PyThreadState, next);
	OFFSET("thread_id", PyThreadState, thread_id);
#if PY_VERSION_HEX >= 0x030b0000
	OFFSET("interpreter_threads", PyInterpreterState, threads.head);
	OFFSET("thread_frame", PyThreadState, cframe);
	OFFSET("cframe_frame", _PyCFrame, current_frame);
	OFFSET("frame_previous", _PyInterpreterFrame, previous);
	OFFSET("frame_code", _PyInterpreterFrame, f_code);
	OFFSET("frame_instruction", _PyInterpreterFrame, prev_instr);
	OFFSET("frame_owner", _PyInterpreterFrame, owner);
	OFFSET("code_qualname", PyCodeObject, co_qualname);
	OFFSET("code_bytecode", PyCodeObject, co_code_adaptive);
#else
	OFFSET("interpreter_threads", PyInterpreterState, tstate_head);
	OFFSET("thread_frame", PyThreadState, frame);
	NONE("cframe_frame");
	OFFSET("frame_previous", PyFrameObject, f_back);
	OFFSET("frame_code", PyFrameObject, f_code);
	OFFSET("frame_instruction", PyFrameObject, f_lasti);
	NONE("frame_owner");
	NONE("code_qualname");
	NONE("code_bytecode");
#endif
	OFFSET("code_filename", PyCodeObject, co_filename);
	OFFSET("code_name", PyCodeObject, co_name);
	OFFSET("code_first_line", PyCodeObject, co_firstlineno);
	OFFSET("code_line_table", PyCodeObject, co_linetable);
	OFFSET("object_type", PyObject, ob_type);
	OFFSET("type_name", PyTypeObject, tp_name);
	OFFSET("bytes_size", PyBytesObject, ob_base.ob_size);
	OFFSET("bytes_data", PyBytesObject, ob_sval);
	OFFSET("text_length", PyASCIIObject, length);
	OFFSET("text_state", PyASCIIObject, state);
	printf(" \"text_ascii_data\": %zu,\n", sizeof(PyASCIIObject));
	printf(" \"text_compact_data\": %zu\n}\n", sizeof(PyCompactUnicodeObject));
	return 0;
}
