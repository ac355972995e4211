package openai

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
)

// Kind is what media are.
type Kind uint8

// Kinds of media.
const (
	Image Kind = iota
	Audio
	Video
	File
)

// Kinds of parts beside those.
const (
	textPart Kind = iota + 16
	blockPart
	otherPart
)

// kindOf is the kind of a part of the type that the client names.
func kindOf(name []byte) Kind {
	switch string(name) {
	case "text", "input_text", "output_text":
		return textPart
	case "tool_use", "tool_result", "thinking":
		return blockPart
	case "image_url", "input_image", "image":
		return Image
	case "input_audio", "audio_url", "audio":
		return Audio
	case "video_url", "input_video", "video":
		return Video
	case "file", "input_file", "document":
		return File
	default:
		return otherPart
	}
}

// Media is a part of a message that is not text.
type Media struct {
	// Kind is what it is.
	Kind Kind
	// Width and Height are those of an image, in pixels; 0: not known.
	Width, Height int
	// Low is whether an image is wanted in low detail.
	Low bool
	// Seconds is the length of an audio; 0: not known.
	Seconds int
	// Bytes is how much of the body it is.
	Bytes int
}

// What media are taken to cost where the model's own rule is not known. An image
// is cut into patches, and most models spend about a token on 28 × 28 pixels and
// scale down what would cost more than a few thousand; one in low detail is one
// tile. Audio models make some 25 tokens of a second.
const (
	patchSide     = 28
	mostPatches   = 2048
	unknownImage  = 1024
	lowImage      = 85
	audioPerSec   = 25
	unknownSecs   = 30
	unknownVideo  = 2048
	unknownFile   = 1024
	bytesPerSec   = 16 << 10 // of an audio whose head doesn't say
	longestAudio  = 4 * 3600
	longestSide   = 1 << 16
	mostSegments  = 64 // of a JPEG before the one that has its size
	dataHeadBytes = 128
)

// Tokens estimates what the model will make of it.
func (m *Media) Tokens() int {
	switch m.Kind {
	case Audio:
		if m.Seconds == 0 {
			return audioPerSec * unknownSecs
		}
		return audioPerSec * m.Seconds
	case Video:
		return unknownVideo
	case File:
		return unknownFile
	}
	switch {
	case m.Low:
		return lowImage
	case m.Width == 0:
		return unknownImage
	}
	patches := ((m.Width + patchSide - 1) / patchSide) * ((m.Height + patchSide - 1) / patchSide)
	return min(patches, mostPatches)
}

// media returns the part's media of a kind.
func (p *part) media(k Kind) Media {
	m := Media{Kind: k, Low: p.low, Bytes: p.bytes}
	data := encoded(p.source)
	switch k {
	case Image:
		m.Width, m.Height = data.size()
	case Audio:
		m.Seconds = data.seconds()
	}
	return m
}

// base64ed is bytes in base64, read without decoding them all.
type base64ed []byte

// encoded returns the base64 of a data URL, or the text itself if it is no URL.
func encoded(source []byte) base64ed {
	if bytes.HasPrefix(source, []byte("data:")) {
		head, data, _ := bytes.Cut(source[:min(len(source), dataHeadBytes)], []byte(","))
		if !bytes.HasSuffix(head, []byte(";base64")) || data == nil {
			return nil
		}
		return base64ed(source[len(head)+1:])
	}
	if bytes.Contains(source[:min(len(source), 16)], []byte("://")) {
		return nil
	}
	return base64ed(source)
}

// read fills dst with what begins at a byte; false if there is not so much, or it
// is not base64.
func (b base64ed) read(at int, dst []byte) bool {
	first, last := at/3*4, (at+len(dst)+2)/3*4
	if at < 0 || last > len(b) || len(dst) > 48 {
		return false
	}
	var decoded [64]byte
	n, err := base64.StdEncoding.Decode(decoded[:], b[first:last])
	if skip := at - at/3*3; err == nil && n >= skip+len(dst) {
		copy(dst, decoded[skip:])
		return true
	}
	return false
}

// size returns an image's width and height, 0 if they are not known.
func (b base64ed) size() (w, h int) {
	var head [32]byte
	if !b.read(0, head[:30]) {
		return 0, 0
	}
	be := binary.BigEndian
	switch {
	case bytes.HasPrefix(head[:], []byte("\x89PNG\r\n\x1a\n")):
		w, h = int(be.Uint32(head[16:])), int(be.Uint32(head[20:]))
	case bytes.HasPrefix(head[:], []byte("GIF8")):
		w, h = int(binary.LittleEndian.Uint16(head[6:])), int(binary.LittleEndian.Uint16(head[8:]))
	case bytes.HasPrefix(head[:], []byte("RIFF")) && string(head[8:12]) == "WEBP":
		w, h = webp(head[12:30])
	case head[0] == 0xff && head[1] == 0xd8:
		w, h = b.jpeg()
	}
	if w <= 0 || h <= 0 || w > longestSide || h > longestSide {
		return 0, 0
	}
	return w, h
}

// webp reads the size from the first chunk of a WebP: 18 bytes of it.
func webp(b []byte) (w, h int) {
	le := binary.LittleEndian
	switch string(b[:4]) {
	case "VP8 ":
		return int(le.Uint16(b[14:])) & 0x3fff, int(le.Uint16(b[16:])) & 0x3fff
	case "VP8L":
		bits := le.Uint32(b[9:])
		return int(bits&0x3fff) + 1, int(bits>>14&0x3fff) + 1
	case "VP8X":
		return int(le.Uint32(b[12:])&0xffffff) + 1, int(le.Uint32(b[14:])>>8) + 1
	}
	return 0, 0
}

// jpeg looks for the segment that has the size.
func (b base64ed) jpeg() (w, h int) {
	at := 2
	var s [9]byte
	for range mostSegments {
		if !b.read(at, s[:]) || s[0] != 0xff {
			return 0, 0
		}
		if m := s[1]; m >= 0xc0 && m <= 0xcf && m != 0xc4 && m != 0xc8 && m != 0xcc {
			return int(binary.BigEndian.Uint16(s[7:])), int(binary.BigEndian.Uint16(s[5:]))
		}
		at += 2 + int(binary.BigEndian.Uint16(s[2:]))
	}
	return 0, 0
}

// seconds returns the length of an audio, 1 at least; 0 if there is none.
func (b base64ed) seconds() int {
	size := len(b) / 4 * 3
	if size == 0 {
		return 0
	}
	rate := bytesPerSec
	var head [32]byte
	if b.read(0, head[:]) && string(head[:4]) == "RIFF" && string(head[8:12]) == "WAVE" {
		if n := binary.LittleEndian.Uint32(head[28:]); n > 0 {
			rate = int(n)
		}
	}
	return min(1+size/rate, longestAudio)
}
