package pki

import (
	"errors"
	"fmt"

	"github.com/baton-cluster/baton/wire"
)

// Kind is what is wrong with the files.
type Kind uint8

const (
	// Missing: a file that is needed is not there.
	Missing Kind = iota + 1
	// Exists: a file that would be made is there already.
	Exists
	// Unreadable: a file is there, but cannot be read or is no such thing.
	Unreadable
	// Foreign: a certificate was not issued by this directory's authority, or
	// not for this name or role.
	Foreign
	// Expired: a certificate's time has passed, or has not come.
	Expired
	// Mismatched: two files do not belong together.
	Mismatched
	// Invalid: a name or host cannot be put into a certificate.
	Invalid
)

// Error says which file is wrong, how, and what to do. It unwraps to a
// *wire.Error, so that it can be reported like any other refusal; compare
// kinds with KindOf, never the text.
type Error struct {
	Kind Kind
	File string // path; empty for Invalid
	err  *wire.Error
}

func (e *Error) Error() string { return e.err.Message }

func (e *Error) Unwrap() error { return e.err }

// KindOf returns the kind of the first Error in err's chain, 0 if there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

// code gives each kind the nearest of the codes that all refusals share.
func (k Kind) code() wire.Code {
	switch k {
	case Missing:
		return wire.Code_NOT_INITIALISED
	case Exists:
		return wire.Code_ALREADY_INITIALISED
	case Invalid:
		return wire.Code_BAD_REQUEST
	}
	return wire.Code_NOT_AUTHORISED
}

func fault(kind Kind, file, format string, args ...any) *Error {
	return &Error{Kind: kind, File: file, err: &wire.Error{Code: kind.code(), Message: fmt.Sprintf(format, args...)}}
}
