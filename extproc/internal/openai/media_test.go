package openai

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"image"
	"image/gif"
	"image/jpeg"
	"image/png"
	"testing"

	"millrace.dev/millrace/internal/apis"
)

// dataURL is an image as clients send it.
func dataURL(kind string, b []byte) []byte {
	return []byte("data:image/" + kind + ";base64," + base64.StdEncoding.EncodeToString(b))
}

// encodedImage is an image of a size in one of the formats of the standard library.
func encodedImage(t testing.TB, kind string, w, h int) []byte {
	t.Helper()
	var b bytes.Buffer
	rect := image.Rect(0, 0, w, h)
	var err error
	switch kind {
	case "png":
		err = png.Encode(&b, image.NewGray(rect))
	case "gif":
		err = gif.Encode(&b, image.NewGray(rect), nil)
	default:
		err = jpeg.Encode(&b, image.NewGray(rect), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSizeOfImages(t *testing.T) {
	for _, kind := range []string{"png", "jpeg", "gif"} {
		for _, size := range [][2]int{{1, 1}, {640, 480}, {1023, 3}} {
			b := encodedImage(t, kind, size[0], size[1])
			if kind == "jpeg" { // a camera's remarks stand before the size
				b = append(append(append([]byte{}, b[:2]...), append([]byte{0xff, 0xe1, 0x7f, 0xff}, make([]byte, 0x7ffd)...)...), b[2:]...)
			}
			w, h := encoded(dataURL(kind, b)).size()
			if w != size[0] || h != size[1] {
				t.Errorf("a %s of %d × %d seems %d × %d", kind, size[0], size[1], w, h)
			}
		}
	}
}

func TestSizeOfWebP(t *testing.T) {
	head := func(chunk string, rest ...byte) []byte {
		b := append([]byte("RIFF\x00\x00\x00\x00WEBP"+chunk+"\x00\x00\x00\x00"), rest...)
		return append(b, make([]byte, 40)...)
	}
	for _, b := range [][]byte{
		head("VP8 ", 0, 0, 0, 0x9d, 0x01, 0x2a, 0x20, 0x03, 0x58, 0x02),
		head("VP8L", 0x2f, 0x1f, 0xc3, 0x95, 0x00),
		head("VP8X", 0, 0, 0, 0, 0x1f, 0x03, 0x00, 0x57, 0x02, 0x00),
	} {
		if w, h := encoded(dataURL("webp", b)).size(); w != 800 || h != 600 {
			t.Errorf("%q seems %d × %d, want 800 × 600", b[12:16], w, h)
		}
	}
}

func TestTokensOfMedia(t *testing.T) {
	wav := append([]byte("RIFF....WAVEfmt ................"), make([]byte, 64000)...)
	binary.LittleEndian.PutUint32(wav[28:], 32000)
	sound := func(b []byte) *part { return &part{source: []byte(base64.StdEncoding.EncodeToString(b))} }
	tests := []struct {
		name string
		part *part
		kind Kind
		want int
	}{
		{"an image of a known size", &part{source: dataURL("png", encodedImage(t, "png", 280, 57))}, Image, 30},
		{"a large image", &part{source: dataURL("png", encodedImage(t, "png", 4000, 4000))}, Image, mostPatches},
		{"an image in low detail", &part{source: dataURL("png", encodedImage(t, "png", 4000, 4000)), low: true}, Image, lowImage},
		{"an image elsewhere", &part{source: []byte("https://x/y.png")}, Image, unknownImage},
		{"not an image", &part{source: []byte("data:image/png;base64,AAAA")}, Image, unknownImage},
		{"a URL that is not base64", &part{source: []byte("data:image/svg+xml,<svg/>")}, Image, unknownImage},
		{"two seconds of WAV", sound(wav), Audio, 3 * audioPerSec},
		{"an audio elsewhere", &part{source: []byte("https://x/y.mp3")}, Audio, unknownSecs * audioPerSec},
		{"a film", &part{}, Video, unknownVideo},
		{"a file", &part{}, File, unknownFile},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := tt.part.media(tt.kind)
			if got := m.Tokens(); got != tt.want {
				t.Errorf("%+v has %d tokens, want %d", m, got, tt.want)
			}
		})
	}
}

func TestEstimateLeavesMediaOut(t *testing.T) {
	picture := dataURL("png", append(encodedImage(t, "png", 28, 28), make([]byte, 1<<20)...))
	for api, body := range map[apis.API]string{
		apis.Chat:      `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"%s"}}]}]}`,
		apis.Responses: `{"input":[{"role":"user","content":[{"type":"input_image","image_url":"%s"}]}]}`,
		apis.Messages:  `{"messages":[{"role":"user","content":[{"type":"tool_result","content":[{"type":"image","source":{"type":"base64","data":"%s"}}]}]}]}`,
	} {
		var r Request
		if err := r.Parse(api, fmt.Appendf(nil, body, picture)); err != nil {
			t.Fatal(err)
		}
		if n := r.Estimate(); len(r.Media) != 1 || n > 100 {
			t.Errorf("%v: %d media, %d tokens; want one and some", api, len(r.Media), n)
		}
	}
}

func FuzzMedia(f *testing.F) {
	for _, kind := range []string{"png", "jpeg", "gif"} {
		f.Add(encodedImage(f, kind, 30, 20))
	}
	f.Add([]byte("RIFF\x00\x00\x00\x00WEBPVP8X\x00\x00\x00\x00abcdefghijklmnopqrstuvwxyz"))
	f.Add([]byte("RIFF....WAVEfmt ................"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, source := range [][]byte{b, dataURL("x", b)} {
			for k := Image; k <= File; k++ {
				p := part{source: source}
				m := p.media(k)
				if n := m.Tokens(); n < 1 || n > audioPerSec*longestAudio {
					t.Errorf("%q as %d: %+v has %d tokens", source, k, m, n)
				}
			}
		}
		c, kind, err := image.DecodeConfig(bytes.NewReader(b))
		w, h := encoded(dataURL("x", b)).size()
		if err == nil && kind != "jpeg" && c.Width > 0 && c.Height > 0 && len(b) >= 30 && c.Width <= longestSide && c.Height <= longestSide && (w != c.Width || h != c.Height) {
			t.Errorf("%q: %d × %d, the library reads %d × %d", b, w, h, c.Width, c.Height)
		}
	})
}
