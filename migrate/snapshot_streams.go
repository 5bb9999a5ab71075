package migrate

import (
	"encoding/binary"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/wire"
)

// streamMessageBytesMax bounds the text of a handler's error.
const streamMessageBytesMax = 4 << 10

// checkStreams is checkState's part for byte streams.
func checkStreams(streams []*wire.StreamState) error {
	if n := len(streams); n > wire.StreamsPerSessionMax {
		return wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE, "connection state has %d byte streams, the limit is %d", n, wire.StreamsPerSessionMax)
	}
	for _, s := range streams {
		switch {
		case len(s.GetUnread()) > bulk.WindowBytes,
			len(s.GetArgument()) > wire.StreamArgumentBytesMax,
			len(s.GetCookie()) > wire.StreamCookieBytesMax,
			len(s.GetMessage()) > streamMessageBytesMax,
			len(s.GetMethod()) > wire.MethodBytesMax:
			return wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE, "byte stream %d is over a limit", s.GetStream())
		case len(s.GetClient()) > clientIDBytesMax, s.GetStream() == 0,
			s.GetSent()+uint64(len(s.GetUnread())) < s.GetSent():
			return wire.Errorf(wire.Code_SNAPSHOT_BAD, "byte stream %d is not well-formed", s.GetStream())
		}
	}
	return nil
}

// appendStreams is Digest's part for byte streams.
func appendStreams(buf []byte, streams []*wire.StreamState) []byte {
	for _, s := range streams {
		buf = appendBytes(buf, s.GetClient())
		buf = binary.BigEndian.AppendUint64(buf, s.GetStream())
		buf = appendString(buf, s.GetMethod())
		buf = appendBytes(buf, s.GetArgument())
		buf = binary.BigEndian.AppendUint64(buf, s.GetAcked())
		buf = appendBytes(buf, s.GetCookie())
		buf = binary.BigEndian.AppendUint64(buf, s.GetSent())
		buf = appendBytes(buf, s.GetUnread())
		if s.GetEnded() {
			buf = append(buf, 1)
		} else {
			buf = append(buf, 0)
		}
		buf = binary.BigEndian.AppendUint64(buf, uint64(s.GetCode()))
		buf = appendString(buf, s.GetMessage())
	}
	return binary.BigEndian.AppendUint64(buf, uint64(len(streams)))
}
