import com.fasterxml.jackson.databind.ObjectMapper;
import io.apicurio.registry.utils.converter.avro.AvroData;
import java.io.IOException;
import java.net.URI;
import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Map;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.kafka.connect.data.SchemaAndValue;
import org.apache.kafka.connect.errors.DataException;
import org.apache.kafka.connect.storage.Converter;

/**
 * A value with a schema's id before it, by a registry that speaks Confluent's protocol. Confluent's own converter is in no
 * public registry of packages; from Avro to Connect's data this is Apicurio's.
 */
public final class FramedAvroConverter implements Converter {
    private final Map<Integer, GenericDatumReader<Object>> readers = new HashMap<>();
    private final AvroData data = new AvroData(100);
    private BinaryDecoder decoder;
    private String registry;

    @Override
    public void configure(Map<String, ?> settings, boolean isKey) {
        registry = settings.get("registry").toString();
    }

    @Override
    public SchemaAndValue toConnectData(String topic, byte[] value) {
        if (value == null) {
            return SchemaAndValue.NULL;
        }
        if (value.length < 5 || value[0] != 0) {
            throw new DataException("no schema id before the value");
        }
        try {
            GenericDatumReader<Object> reader = reader(ByteBuffer.wrap(value, 1, 4).getInt());
            decoder = DecoderFactory.get().binaryDecoder(value, 5, value.length - 5, decoder);
            return data.toConnectData(reader.getSchema(), reader.read(null, decoder));
        } catch (IOException error) {
            throw new DataException("cannot read a value", error);
        }
    }

    private GenericDatumReader<Object> reader(int id) throws IOException {
        GenericDatumReader<Object> reader = readers.get(id);
        if (reader == null) {
            var answer = new ObjectMapper().readTree(URI.create(registry + "/schemas/ids/" + id).toURL());
            reader = new GenericDatumReader<>(new Schema.Parser().parse(answer.get("schema").asText()));
            readers.put(id, reader);
        }
        return reader;
    }

    @Override
    public byte[] fromConnectData(String topic, org.apache.kafka.connect.data.Schema schema, Object value) {
        throw new UnsupportedOperationException("a sink only reads");
    }
}
