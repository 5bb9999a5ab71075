package bulk

import (
	"encoding/binary"
	"io"

	"github.com/baton-cluster/baton/wire"
)

// MessageBytesMax bounds a message on a byte stream: one is written as a whole or
// not at all, and several fit a window, so that a reader may acknowledge one
// while the next comes.
const MessageBytesMax = WindowBytes/4 - messageHeaderBytes

// messageHeaderBytes precede each message: its length, big-endian.
const messageHeaderBytes = 4

// AppendMessage appends m, framed. Over MessageBytesMax it is VALUE_TOO_LARGE.
func AppendMessage(dst, m []byte) ([]byte, error) {
	if len(m) > MessageBytesMax {
		return dst, wire.Errorf(wire.Code_VALUE_TOO_LARGE, "a message has at most %d bytes, this one %d: write it as plain bytes, or in parts", MessageBytesMax, len(m))
	}
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(m))), m...), nil
}

// ReadMessage reads one message. Errors: io.EOF between messages,
// io.ErrUnexpectedEOF within one, VALUE_TOO_LARGE for one that is announced with
// more than MessageBytesMax, of which nothing is allocated; else r's.
func ReadMessage(r io.Reader) ([]byte, error) {
	var header [messageHeaderBytes]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > MessageBytesMax {
		return nil, wire.Errorf(wire.Code_VALUE_TOO_LARGE, "a message of %d bytes was announced, at most %d are allowed: are these messages?", size, MessageBytesMax)
	}
	m := make([]byte, size)
	if _, err := io.ReadFull(r, m); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return m, nil
}
