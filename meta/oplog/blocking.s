// This file has the compiler accept functions without a body; see blocking.go.
