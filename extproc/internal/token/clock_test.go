package token

import (
	"testing"
	"testing/synctest"
	"time"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// Templates that read the clock, in the ways that published ones do and in some others.
const (
	turns    = `{% for m in messages %}<|im_start|>{{ m.role + m.content }}<|im_end|>{% endfor %}`
	short    = `<|im_start|>{{ strftime_now('%-d %B') }}<|im_end|>` + turns
	timed    = `<|im_start|>{{ strftime_now('%H:%M') }}<|im_end|>` + turns
	asked    = `{% if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}<|im_start|>{{ date_string }}<|im_end|>` + turns
	parted   = `{% if strftime_now('%Y') | int < 1990 %}long ago{% endif %}` + turns
	ofTools  = `{% if tools %}<|im_start|>{{ strftime_now('%-d') }}<|im_end|>{% endif %}` + turns
	ofSystem = `{% for m in messages %}<|im_start|>{{ m.role + m.content }}{% if m.role == 'system' %} {{ strftime_now('%-d %m') }}{% endif %}<|im_end|>{% endfor %}`
	besides  = `{{ strftime_now('%-d %B') }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}`
	ofLlama  = `<|im_start|>{{ date_string }}<|im_end|>` + turns
)

// TestClocksOfEngines has counts be exact where the dates of all zones count alike, and ids
// where the prompt is the same on all of them. Tokens of digits are single ones here.
func TestClocksOfEngines(t *testing.T) {
	smol(t)                                                                // read outside of the bubbles
	const alike, moves = 5 * 24 * time.Hour, 8*24*time.Hour + 12*time.Hour // the 6th; the 9th, and the 10th in the east
	user := []Message{{Role: "user", Content: []byte("Hello there")}}
	withSystem := append([]Message{{Role: "system", Content: []byte("Be brief.")}}, user...)
	for _, tt := range []struct {
		name, template string
		llama          bool
		after          time.Duration // the beginning of 2000, UTC
		chat           Chat
		count, ids     Doubt
	}{
		{"a date of one length", dated, false, moves, Chat{Messages: user}, Certain, ByClock},
		{"a date of two lengths", short, false, moves, Chat{Messages: user}, ByClock, ByClock},
		{"one of them on other days", short, false, alike, Chat{Messages: user}, Certain, ByClock},
		{"the time of the day", timed, false, alike, Chat{Messages: user}, ByClock, ByClock},
		{"a date that the request does not give", asked, false, alike, Chat{Messages: user}, Certain, ByClock},
		{"one that it gives", asked, false, moves, Chat{Messages: user, Raw: []byte(`{"chat_template_kwargs":{"date_string":"26 Jul 2024"}}`)}, Certain, Certain},
		{"one that is read and not printed", parted, false, moves, Chat{Messages: user}, Certain, Certain},
		{"one for tools, without them", ofTools, false, moves, Chat{Messages: user}, Certain, Certain},
		{"one for systems, without one", ofSystem, false, moves, Chat{Messages: user}, Certain, Certain},
		{"one for systems", ofSystem, false, moves, Chat{Messages: withSystem}, ByClock, ByClock},
		{"one for systems on other days", ofSystem, false, alike, Chat{Messages: withSystem}, Certain, ByClock},
		{"one that words of the client join", besides, false, moves, Chat{Messages: user}, ByClock, ByClock},
		{"llama.cpp's", ofLlama, true, moves, Chat{Messages: user}, Certain, ByClock},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(tt.after)
				of := &Model{bpe: smol(t).bpe, specials: smol(t).specials, memo: newMemo()}
				of.setTemplate(&source{template: tt.template, llama: tt.llama})
				n, exact := of.CountChat(&tt.chat)
				if tt.chat.Doubt != tt.count || exact != (tt.count == Certain) {
					t.Errorf("counted %d, doubt %q, exact %v; want doubt %q", n, tt.chat.Doubt, exact, tt.count)
				}
				ids, exact := of.AppendChat(nil, &tt.chat)
				if tt.chat.Doubt != tt.ids || exact != (tt.ids == Certain) || len(ids) != n {
					t.Errorf("%d ids of %d, doubt %q, exact %v; want doubt %q", len(ids), n, tt.chat.Doubt, exact, tt.ids)
				}
			})
		})
	}
}

// TestWhatTemplatesPrint has a model say what its template prints of the clock, and whether
// that makes estimates now.
func TestWhatTemplatesPrint(t *testing.T) {
	smol(t)
	for _, tt := range []struct {
		name, template     string
		llama              bool
		after              time.Duration
		date, time, differ bool
	}{
		{"nothing", turns, false, 0, false, false, false},
		{"a date of two lengths", short, false, 8*24*time.Hour + 12*time.Hour, true, false, true},
		{"a date of two lengths, on other days", short, false, 5 * 24 * time.Hour, true, false, false},
		{"a date for systems", ofSystem, false, 8*24*time.Hour + 12*time.Hour, true, false, true},
		{"a date for tools", ofTools, false, 5 * 24 * time.Hour, true, false, false},
		{"the time", timed, false, 0, false, true, true},
		{"llama.cpp's date", ofLlama, true, 5 * 24 * time.Hour, true, false, false},
		{"a template that is not rendered", "{% include 'x' %}", false, 0, false, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(tt.after)
				of := &Model{bpe: smol(t).bpe, specials: smol(t).specials, memo: newMemo()}
				of.setTemplate(&source{template: tt.template, llama: tt.llama})
				if of.PrintsDate() != tt.date || of.PrintsTime() != tt.time || of.DatesDiffer() != tt.differ {
					t.Errorf("prints the date: %v, the time: %v, differ: %v", of.PrintsDate(), of.PrintsTime(), of.DatesDiffer())
				}
			})
		})
	}
}

// TestClocksOfToolsTemplates has the slow way, which renders, doubt as the form does.
func TestClocksOfToolsTemplates(t *testing.T) {
	smol(t)
	synctest.Test(t, func(t *testing.T) {
		of := &Model{bpe: smol(t).bpe, specials: smol(t).specials, memo: newMemo()}
		of.setTemplate(&source{template: ofTools})
		of, err := of.For(Engine{Kind: "vllm", Version: Newest("vllm")})
		if err != nil {
			t.Fatal(err)
		}
		c := &Chat{
			Messages: []Message{{Role: "user", Content: []byte("Hello there")}},
			Tools:    []byte(`[{"type":"function","function":{"name":"f","description":"g","parameters":{"type":"object","properties":{}}}}]`),
		}
		for range 31 {
			at := daysOf(time.Now())
			_, exact := of.CountChat(c)
			few, many := time.Unix((at.first-1)*86400, 0).UTC().Day(), time.Unix((at.last-1)*86400, 0).UTC().Day()
			if want := (few < 10) == (many < 10); exact != want || exact != (c.Doubt == Certain) {
				t.Errorf("between the %d. and the %d. exact is %v, doubt %q", few, many, exact, c.Doubt)
			}
			if _, exact := of.AppendChat(nil, c); exact || c.Doubt != ByClock {
				t.Errorf("ids are exact: %v, doubt %q", exact, c.Doubt)
			}
			time.Sleep(day)
		}
	})
}

// TestDays has the dates of all zones be those of the zones' own clocks.
func TestDays(t *testing.T) {
	west, east := time.FixedZone("", -12*3600), time.FixedZone("", 14*3600)
	for minute := range 3 * 24 * 60 {
		now := time.Date(2026, 2, 27, 0, minute, 0, 0, time.UTC)
		d := daysOf(now)
		for _, zone := range []*time.Location{west, east, time.UTC} {
			is := now.In(zone).Format(time.DateOnly)
			found := now.Format(time.DateOnly) == is
			for _, at := range d.elsewhere() {
				found = found || at.Format(time.DateOnly) == is
			}
			if !found {
				t.Fatalf("at %v %v is not among the days %v", now, is, d)
			}
		}
		if n := d.last - d.first; n < 1 || n > 2 || d.here < d.first || d.here > d.last {
			t.Fatalf("at %v the days are %v", now, d)
		}
	}
}

// TestReadings has what formats show of the clock be what templates are said to have read.
func TestReadings(t *testing.T) {
	for format, want := range map[string]jinja.Reading{
		"": jinja.NotRead, "%%%n%z%Z": jinja.NotRead, "%": jinja.NotRead,
		"%d %b %Y": jinja.DateRead, "%-d": jinja.DateRead, "%A %j": jinja.DateRead, "%F%D%x%u%w%y%h%e%_m": jinja.DateRead,
		"%H": jinja.TimeRead, "%d %p": jinja.TimeRead, "%c": jinja.TimeRead, "%f": jinja.TimeRead, "%-I": jinja.TimeRead, "%T": jinja.TimeRead, "%X%R%r%M%S": jinja.TimeRead,
	} {
		parsed, err := jinja.Parse("{{ strftime_now(f) if f is defined }}")
		if err != nil {
			t.Fatal(err)
		}
		vars := jinja.NewDict(1)
		vars.Set("f", format)
		var read jinja.Reading
		_, err = parsed.Render(vars, jinja.Options{Now: time.Unix(1, 0), Read: &read})
		if (err != nil) != (format == "%") || read != want {
			t.Errorf("%q: read %v, error %v; want %v", format, read, err, want)
		}
	}
}
