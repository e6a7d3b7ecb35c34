import java.io.DataInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.URI;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericRecord;
import org.apache.flink.api.common.serialization.DeserializationSchema;
import org.apache.flink.configuration.ConfigOption;
import org.apache.flink.configuration.ConfigOptions;
import org.apache.flink.configuration.ReadableConfig;
import org.apache.flink.formats.avro.AvroRowDataDeserializationSchema;
import org.apache.flink.formats.avro.AvroToRowDataConverters;
import org.apache.flink.formats.avro.RegistryAvroDeserializationSchema;
import org.apache.flink.formats.avro.SchemaCoder;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.flink.table.connector.ChangelogMode;
import org.apache.flink.table.connector.format.DecodingFormat;
import org.apache.flink.table.connector.source.DynamicTableSource;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.factories.DeserializationFormatFactory;
import org.apache.flink.table.factories.DynamicTableFactory;
import org.apache.flink.table.factories.FactoryUtil;
import org.apache.flink.table.types.DataType;
import org.apache.flink.table.types.logical.RowType;

/**
 * The format `framed-avro`: a value with a schema's id before it, as Flink's own `avro-confluent` reads it. That one
 * needs a client which is in no public registry of packages; everything but the look-up of the schema is Flink's.
 */
public final class FramedAvroFormat implements DeserializationFormatFactory {
    private static final ConfigOption<String> REGISTRY = ConfigOptions.key("registry").stringType().noDefaultValue();
    private static final ConfigOption<String> SCHEMA = ConfigOptions.key("schema").stringType().noDefaultValue();

    @Override
    public String factoryIdentifier() {
        return "framed-avro";
    }

    @Override
    public Set<ConfigOption<?>> requiredOptions() {
        return Set.of(REGISTRY, SCHEMA);
    }

    @Override
    public Set<ConfigOption<?>> optionalOptions() {
        return Set.of();
    }

    @Override
    public DecodingFormat<DeserializationSchema<RowData>> createDecodingFormat(
            DynamicTableFactory.Context context, ReadableConfig options) {
        FactoryUtil.validateFactoryOptions(this, options);
        String registry = options.get(REGISTRY);
        String schema = options.get(SCHEMA);
        return new DecodingFormat<>() {
            @Override
            public DeserializationSchema<RowData> createRuntimeDecoder(DynamicTableSource.Context context, DataType type) {
                RowType rows = (RowType) type.getLogicalType();
                return new AvroRowDataDeserializationSchema(
                        new RegistryAvroDeserializationSchema<>(
                                GenericRecord.class, new Schema.Parser().parse(schema), () -> new Schemas(registry)),
                        AvroToRowDataConverters.createRowConverter(rows),
                        context.createTypeInformation(type));
            }

            @Override
            public ChangelogMode getChangelogMode() {
                return ChangelogMode.insertOnly();
            }
        };
    }

    /** Asks the registry once for each id. */
    private static final class Schemas implements SchemaCoder {
        private final String registry;
        private final Map<Integer, Schema> known = new HashMap<>();

        Schemas(String registry) {
            this.registry = registry;
        }

        @Override
        public Schema readSchema(InputStream in) throws IOException {
            DataInputStream data = new DataInputStream(in);
            if (data.readByte() != 0) {
                throw new IOException("no schema id before the value");
            }
            int id = data.readInt();
            Schema schema = known.get(id);
            if (schema == null) {
                var answer = new ObjectMapper().readTree(URI.create(registry + "/schemas/ids/" + id).toURL());
                schema = new Schema.Parser().parse(answer.get("schema").asText());
                known.put(id, schema);
            }
            return schema;
        }

        @Override
        public void writeSchema(Schema schema, OutputStream out) {
            throw new UnsupportedOperationException();
        }
    }
}
