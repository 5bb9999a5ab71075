package wire

import (
	"errors"
	"fmt"
	"strings"
)

// Error is a typed refusal: a code that never changes meaning, and a message
// for people that says what to do. Compare codes with errors.Is against a
// sentinel of the same code, or with CodeOf; never compare the text.
type Error struct {
	Code    Code
	Message string
	// Leader is the management address of the leader, where the code is
	// NOT_LEADER and the answering node knows it.
	Leader string
}

// Errorf makes an Error.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code.Label()
	}
	return e.Code.Label() + ": " + e.Message
}

// Is reports whether target is an Error of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Retryable reports whether asking again, perhaps elsewhere, may succeed, and
// is safe: nothing was consumed.
func (e *Error) Retryable() bool { return e.Code.Retryable() }

// CodeOf returns the code of the first Error in err's chain, OK for nil and
// INTERNAL for a chain without one.
func CodeOf(err error) Code {
	if err == nil {
		return Code_OK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Code_INTERNAL
}

// Label is the code's name as the command line and the docs print it.
func (c Code) Label() string { return strings.ToLower(c.String()) }

// CodeNamed is the code of a label, INTERNAL if it is none.
func CodeNamed(label string) (c Code, ok bool) {
	n, ok := Code_value[strings.ToUpper(label)]
	if !ok {
		return Code_INTERNAL, false
	}
	return Code(n), true
}

// Retryable reports whether the same request may be sent again.
func (c Code) Retryable() bool {
	switch c {
	case Code_UNAVAILABLE, Code_NOT_LEADER, Code_RETRY, Code_SHUTTING_DOWN, Code_OVERLOADED,
		Code_NOT_OWNER, Code_NO_OWNER, Code_FROZEN, Code_MOVED, Code_STALE_EPOCH,
		Code_STALE_INCARNATION, Code_NOT_ATTACHED, Code_REPLY_CACHE_FULL, Code_OUTBOX_FULL,
		Code_BUDGET_EXCEEDED, Code_TOO_MANY, Code_CONNECTION_FULL, Code_DEADLINE_EXCEEDED,
		Code_CHANGE_UNDER_WAY:
		return true
	}
	return false
}
